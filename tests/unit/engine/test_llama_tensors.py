"""The native route takes the tensors of its table, each in its shape, and nothing else."""

from __future__ import annotations

import json

import pytest
import torch

from millrace.core.errors import UnsupportedModel
from millrace.engine.config import EngineConfig
from millrace.engine.config_json import read_config
from millrace.engine.engine import create_engine
from millrace.engine.models.checkpoint_check import check_checkpoint
from millrace.engine.models.llama_spec import LlamaSpec
from millrace.engine.models.llama_tensors import check_llama_headers, llama_tensors
from millrace.engine.tensor_headers import tensor_headers
from tests.unit.engine.conftest import BACKENDS
from tests.unit.engine.damages import changed_headers, put

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
Q, K = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.k_proj.weight"
DOWN, NORM = "model.layers.1.mlp.down_proj.weight", "model.layers.1.input_layernorm.weight"
UP = "model.layers.2.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("mistral", put(HEAD, 700, 64), r"\[700, 64\]; .* \[128, 64\], .* vocab_size"),
        ("mistral", put(HEAD, 200_000, 64), r"'lm_head.weight' has the shape \[200000, 64\]"),
        ("mistral", put(HEAD, 120, 64), r"says \[128, 64\], which is vocab_size by hidden_size"),
        ("llama", put(HEAD, 120, 64), r"'lm_head.weight' has the shape \[120, 64\]"),
        ("llama", put(EMBEDDING, 127, 64), r"shape \[127, 64\]; .* \[128, 64\], .* vocab_size"),
        ("llama", put(Q, 32, 64), r"\[64, 64\], which is num_attention_heads \* head_dim"),
        ("llama", put(K, 64, 64), r"\[64, 64\]; .* \[32, 64\], which is num_key_value_heads"),
        ("llama", put(UP, 64, 64), r"'model.layers.2.mlp.up_proj.weight' .* is intermediate"),
        ("llama", put(UP, 96, 65), r"has the shape \[96, 65\]; config.json says \[96, 64\]"),
        ("llama", put(UP, 96 * 64), r"has the shape \[6144\]; config.json says \[96, 64\]"),
        ("llama", put(NORM, 65), r"config.json says \[64\], which is hidden_size"),
        ("qwen3", put(Q.replace("proj", "norm"), 16), r"says \[24\], which is head_dim"),
        ("qwen2", put(Q.replace("weight", "bias"), 96), r"config.json says \[64\]"),
        ("qwen2", lambda tensors: tensors.pop(K.replace("weight", "bias")), "lacks the tensor"),
        ("qwen2", put("model.layers.0.self_attn.o_proj.bias", 64), "has the tensor .*o_proj.bias"),
        ("llama-biased", lambda tensors: tensors.pop(UP.replace("weight", "bias")), "lacks"),
        ("mistral", put("model.layers.0.self_attn.q_proj.bias", 64), "has the tensor .*bias"),
        ("llama", put("model.layers.0.mlp.up_proj.bias", 96), "has the tensor .*up_proj.bias"),
        ("llama", put("model.layers.3.input_layernorm.weight", 64), "has the tensor .*layers.3"),
        ("llama", put("lm_head.bias", 128), "has the tensor 'lm_head.bias'"),
        ("llama", lambda tensors: tensors.pop(DOWN), f"lacks the tensor '{DOWN}'"),
        ("llama", lambda tensors: tensors.pop(EMBEDDING), "lacks 2 tensors, 'lm_head"),
        ("mistral", lambda tensors: tensors.pop(EMBEDDING), f"lacks the tensor '{EMBEDDING}'"),
        ("mistral", lambda tensors: tensors.pop(HEAD), "lacks the tensor 'lm_head.weight'"),
        ("qwen2", put(K.replace("weight", "bias"), 32, dtype=torch.int8), "is stored as I8"),
        ("qwen2", put(K.replace("weight", "bias"), 32, dtype=torch.float8_e4m3fn), "as F8_E4M3"),
        ("llama", put(UP, 96, 64, dtype=torch.bool), "quantized by BOOL"),
    ],
)
def test_native_tensors_must_be_those_of_config_json(folder_of, name, change, reason):
    folder = folder_of(name, change)

    for backend in BACKENDS:
        config = EngineConfig(folder, "x", device="cpu", backend=backend, num_threads=1)
        with pytest.raises(UnsupportedModel, match=reason):
            create_engine(config)
    with pytest.raises(UnsupportedModel, match=reason) as refusal:
        check_checkpoint(folder)
    assert str(folder) in refusal.value.message and "\n" not in refusal.value.message


@pytest.mark.parametrize(
    ("name", "setting", "value", "reason"),
    [
        ("llama", "num_key_value_heads", 4, r"k_proj.weight' .* says \[64, 64\], which is num_key"),
        ("llama", "num_hidden_layers", 2, "has 9 tensors, 'model.layers.2"),
        ("llama", "num_hidden_layers", 4, "lacks 9 tensors, 'model.layers.3"),
        ("llama", "num_hidden_layers", 10**9, "num_hidden_layers is over 10000"),
        ("llama", "vocab_size", 129, r"embed_tokens.weight' .* says \[129, 64\]"),
        ("llama", "vocab_size", 10**30, "vocab_size is over 2147483647"),
        ("llama", "hidden_size", 128, r"\[128, 128\], which is vocab_size by hidden_size"),
        ("llama", "intermediate_size", 95, r"\[95, 64\], which is intermediate_size by"),
        ("llama", "head_dim", 32, r"\[128, 64\], which is num_attention_heads \* head"),
        ("llama", "head_dim", 15, "head_dim is 15; positions turn pairs"),
        ("llama", "tie_word_embeddings", False, "lacks the tensor 'lm_head.weight'"),
        ("llama", "attention_bias", True, "lacks 12 tensors, 'model.layers.0.self_attn.k"),
        ("llama-biased", "mlp_bias", False, "has 9 tensors, 'model.layers.0.mlp.down_proj.bias'"),
        ("qwen3", "attention_bias", True, "lacks 12 tensors"),
        ("qwen2", "model_type", "llama", "has 9 tensors, 'model.layers.0.self_attn.k_proj.bias'"),
    ],
)
def test_config_json_of_another_model_is_refused(folder_of, name, setting, value, reason):
    folder = folder_of(name)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, setting: value}))

    for backend in BACKENDS:
        engine = EngineConfig(folder, "x", device="cpu", backend=backend, num_threads=1)
        with pytest.raises(UnsupportedModel, match=reason):
            create_engine(engine)
    with pytest.raises(UnsupportedModel, match=reason):
        check_checkpoint(folder)


@pytest.mark.parametrize(
    "name",
    [*("llama", "llama-biased", "mistral", "qwen2", "qwen3"), "qwen2-windowed", "llama-llama3"],
)
def test_the_native_table_is_what_transformers_saves(tiny, name):
    spec = LlamaSpec.from_config(read_config(tiny(name).path))
    wanted = {key: tuple(side.size for side in shape) for key, shape in llama_tensors(spec).items()}

    assert wanted == {key: tuple(each.shape) for key, each in tiny(name).model.state_dict().items()}


def test_rotary_frequencies_of_older_checkpoints_are_left(folder_of):
    folder = folder_of("llama", put("model.layers.0.self_attn.rotary_emb.inv_freq", 8))

    assert check_checkpoint(folder) == "native"
    create_engine(EngineConfig(folder, "x", device="cpu", num_threads=1))


@pytest.mark.parametrize("name", ["llama", "llama-biased", "mistral", "qwen2", "qwen3"])
def test_any_change_of_one_tensor_is_refused(tiny, name, chance):
    spec = LlamaSpec.from_config(read_config(tiny(name).path))
    headers = tensor_headers(tiny(name).path)
    check_llama_headers(spec, headers)

    for _ in range(200):
        changed, what = changed_headers(headers, chance)
        with pytest.raises(UnsupportedModel):
            check_llama_headers(spec, changed)
            pytest.fail(f"accepted: {what}")
