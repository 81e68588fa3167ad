"""A folder with a tiny random model and a tokenizer, as the services load it from disk."""

from __future__ import annotations

from pathlib import Path

from millrace.testing.tokenizers import write_byte_level


def write_tiny_model(folder: Path) -> Path:
    """Llama with two layers; its vocabulary has room for every id of the tokenizer."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=704,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=None,
    )
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    write_byte_level(folder)
    return folder
