"""Every causal type of transformers that is not refused by its config: served as it computes.

Each is made small and random. What cannot be made small by the sizes below is named, so that a
new transformers shows here what it brings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
)

from millrace.core.step import RowError
from millrace.engine.config import EngineConfig
from millrace.engine.engine import NOT_FINITE, create_engine
from millrace.engine.kernels.cpu.build import find_compiler
from millrace.engine.local import LocalGenerator, LocalRequest
from millrace.engine.models.checkpoint_check import check_checkpoint
from millrace.engine.routes import route_of
from tests.unit.engine.conftest import Tiny, _randomise_vectors

pytestmark = pytest.mark.slow

# Where a type has a field of such a name.
SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 256,
    "dff": 96,
    "word_embed_proj_dim": 64,
    "ffn_dim": 96,
    "num_layers": 3,
    "ffn_hidden_size": 96,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "zero_expert_num": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "moe_layer_start_index": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "qk_head_dim": 32,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "swa_v_head_dim": 16,
}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
# Attention over one latent vector has as many heads for keys as for queries.
LATENT = (
    *("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "longcat_flash", "minicpm3", "youtu"),
)
CHANGES: dict[str, dict[str, Any]] = {
    **{name: {"num_key_value_heads": 4} for name in LATENT},
    "deepseek_v2": {"num_key_value_heads": 4, "num_experts_per_tok": 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "ministral": {"head_dim": 16},
    "modernbert-decoder": {"cls_token_id": 1, "sep_token_id": 2},
}
NOT_MADE_SMALL = {
    *("cohere_compass_text", "dbrx", "dots1", "dots3_note", "emu3", "fuyu", "gemma3"),
    *("gemma4_unified_assistant", "got_ocr2", "moss_transcribe_diarize", "phi4_multimodal"),
}
FEWEST_TYPES = 70


def served_types() -> list[str]:
    return [
        name
        for name in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        if route_of({"model_type": name})[0] == "generic" and name not in NOT_MADE_SMALL
    ]


def make(model_type: str, folder: Path) -> Tiny:
    default = AutoConfig.for_model(model_type)
    sizes = {name: size for name, size in SIZES.items() if getattr(default, name, None) is not None}
    config = AutoConfig.for_model(model_type, **{**sizes, **ENDS, **CHANGES.get(model_type, {})})
    torch.manual_seed(20)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model = kind(config).eval()
    _randomise_vectors(model)
    model.save_pretrained(folder)
    return Tiny(folder, model)


def greedy(tiny: Tiny, tokens: list[int], num_tokens: int) -> list[int]:
    """Up to the end token. Not by `generate`, which has a way of its own for some types."""
    new: list[int] = []
    while len(new) < num_tokens and ENDS["eos_token_id"] not in new:
        new.append(int(tiny.last_logits(tokens + new).argmax()))
    return new


def engine_of(tiny: Tiny, dtype: str) -> Any:
    config = EngineConfig(tiny.path, "x", device="cpu", dtype=dtype, num_threads=1, max_num_seqs=4)
    return create_engine(config)


def first_chunk_tells(engine: Any, driver: Any, tokens: list[int]) -> bool:
    """True if a token whose embedding is infinite ends its row before anything is sampled."""
    with torch.inference_mode():
        engine._runner._model._model.get_input_embeddings().weight[tokens[3], 5] = torch.inf
    result = driver.execute(admissions=[driver.admission(0, tokens)], chunks=[(0, 8)])
    return bool(result.row_errors == [RowError(0, NOT_FINITE)])


@pytest.mark.filterwarnings("ignore")
def test_every_type_is_served_as_transformers_computes_it(tmp_path, prompt, drive):
    types = served_types()
    assert len(types) >= FEWEST_TYPES and find_compiler() is not None
    prompts = [prompt(length) for length in (1, 6, 19, 40)]
    differs, silent = [], []
    for model_type in types:
        tiny = make(model_type, tmp_path / model_type)
        assert check_checkpoint(tiny.path) == "generic", model_type
        assert engine_of(tiny, "bfloat16").info.route == "generic", model_type
        engine = engine_of(tiny, "float32")
        outputs = LocalGenerator(engine, chunk_tokens=16).generate(
            [LocalRequest(tokens, 12) for tokens in prompts]
        )
        expected = [greedy(tiny, tokens, 12) for tokens in prompts]
        if [output.token_ids for output in outputs] != expected:
            differs.append(model_type)
        if not first_chunk_tells(engine, drive(engine), prompts[-1]):
            silent.append(model_type)

    assert not differs
    assert not silent
