from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from millrace.core.errors import UnsupportedModel
from millrace.engine.models.llama_spec import LlamaSpec

SMALL = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
TRAINED = {"original_max_position_embeddings": 8192}
CONFIGS: list[dict[str, Any]] = [
    {"model_type": "llama"},
    {"model_type": "mistral"},
    {"model_type": "qwen2"},
    {"model_type": "qwen3"},
    {"model_type": "llama", **SMALL},
    {"model_type": "llama", **SMALL, "num_key_value_heads": None, "tie_word_embeddings": True},
    {"model_type": "llama", **SMALL, "attention_bias": True, "mlp_bias": True},
    {"model_type": "mistral", **SMALL, "attention_bias": True},
    {"model_type": "qwen2", **SMALL, "num_key_value_heads": None, "mlp_bias": True},
    {"model_type": "qwen3", **SMALL, "num_key_value_heads": None, "attention_bias": True},
    {"model_type": "llama", **SMALL, "head_dim": 32, "rope_theta": 500000.0},
    {"model_type": "llama", **SMALL, "head_dim": None, "rope_scaling": None},
    {"model_type": "llama", **SMALL, "rope_scaling": {"type": "linear", "factor": 2.0}},
    {"model_type": "llama", **SMALL, "rope_theta": 5e5, "rope_scaling": {**LLAMA3, **TRAINED}},
    {"model_type": "llama", **SMALL, "rope_parameters": {**LLAMA3, **TRAINED, "rope_theta": 5e5}},
    {"model_type": "llama", **SMALL, "rope_parameters": {"rope_theta": 1e6}, "rope_theta": 7.0},
    {"model_type": "mistral", **SMALL, "sliding_window": 16},
    {"model_type": "mistral", **SMALL, "sliding_window": None},
    {"model_type": "qwen2", **SMALL, "sliding_window": 32},
    {"model_type": "qwen2", **SMALL, "sliding_window": 32, "use_sliding_window": True},
    {
        "model_type": "qwen2",
        **SMALL,
        "sliding_window": 32,
        "use_sliding_window": True,
        "max_window_layers": 1,
    },
    {
        "model_type": "qwen3",
        **SMALL,
        "sliding_window": 32,
        "use_sliding_window": True,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
    },
    {"model_type": "qwen3", **SMALL, "layer_types": ["full_attention"] * 4},
]


def _windows(parsed: Any) -> Any:
    window = getattr(parsed, "sliding_window", None)
    kinds = getattr(parsed, "layer_types", None)
    if kinds is None:
        return (window,) * parsed.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: str(config["model_type"]))
def test_every_number_is_the_one_that_transformers_reads(
    config: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    parsed: Any = AutoConfig.from_pretrained(tmp_path, local_files_only=True)

    spec = LlamaSpec.from_config(config)

    assert (spec.vocab_size, spec.hidden_size) == (parsed.vocab_size, parsed.hidden_size)
    assert (spec.num_layers, spec.num_heads) == (
        parsed.num_hidden_layers,
        parsed.num_attention_heads,
    )
    assert spec.num_kv_heads == parsed.num_key_value_heads
    assert spec.intermediate_size == parsed.intermediate_size
    head_dim = getattr(parsed, "head_dim", None) or parsed.hidden_size // spec.num_heads
    assert spec.head_dim == head_dim
    assert (spec.norm_eps, spec.tied) == (parsed.rms_norm_eps, parsed.tie_word_embeddings)
    assert spec.max_positions == parsed.max_position_embeddings
    rope = {name: value for name, value in parsed.rope_parameters.items() if name != "type"}
    assert {name: spec.rope[name] for name in rope} == rope
    assert spec.windows == _windows(parsed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": "64"}, "hidden_size is '64'"),
        ({"hidden_size": 66}, "no multiple of 8 heads"),
        ({"num_hidden_layers": 2.0}, "num_hidden_layers is 2.0"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"num_key_value_heads": 3}, "does not divide 8"),
        ({"num_hidden_layers": 10_001}, "num_hidden_layers is over 10000"),
        ({"intermediate_size": 2**31}, "intermediate_size is over 2147483647"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is None"),
        ({"rope_scaling": {**LLAMA3, "factor": "8"}}, "factor is '8'"),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window is 0"),
        (
            {
                "model_type": "qwen3",
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["full_attention"],
            },
            "layer_types is 1 long, for 4 layers",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        LlamaSpec.from_config({"model_type": "llama", **SMALL, **change})


def test_the_native_route_does_without_transformers() -> None:
    code = (
        "import sys; import millrace.worker.__main__; import millrace.engine.models.cpu_llama; "
        "assert not any(name.split('.')[0] == 'transformers' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
