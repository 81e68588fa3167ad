"""A model of random weights, with tokenizer and chat template: every part real, none heavy."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

from millrace.testing.tokenizers import write_byte_level

# What the tokenizer has, and a little.
VOCAB_SIZE = 640
MAX_LEN = 512


def write_tiny_model(folder: Path, *, max_len: int = MAX_LEN, num_layers: int = 3) -> Path:
    """A Llama of a megabyte, in `folder`, that knows `max_len` positions."""
    write_byte_level(folder)
    torch.manual_seed(20)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        max_position_embeddings=max_len,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).eval().save_pretrained(folder)
    return folder
