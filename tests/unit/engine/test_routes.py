"""Which route a config.json leads to."""

from __future__ import annotations

import subprocess
import sys

import pytest

from millrace.engine.routes import route_of


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "hidden_act": "silu"},
        {"model_type": "llama", "rope_scaling": {"rope_type": "llama3"}},
        {"model_type": "mistral", "sliding_window": 4096},
        {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]},
    ],
)
def test_llama_family_is_native(config):
    assert route_of(config) == ("native", "")


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "hidden_act": "gelu"},
        {"model_type": "llama", "rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
        {"model_type": "qwen2", "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
        {"model_type": "gpt_neox"},
        {"model_type": "gemma2"},
        {"model_type": "olmo2"},
        {"model_type": "smollm3"},
    ],
)
def test_plain_decoders_are_generic(config):
    assert route_of(config) == ("generic", "")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "mamba"}, "mamba: it keeps a recurrent state"),
        ({"model_type": "qwen3_next"}, "qwen3_next: it keeps a recurrent state"),
        ({"model_type": "gemma3n_text"}, "share K/V"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "bloom"}, "does not let other attention in"),
        ({"model_type": "bert"}, "not causal"),
        ({"model_type": "no_such_type"}, "no causal language model of this type"),
        ({"model_type": "my_type", "auto_map": {"AutoModel": "x.Y"}}, "never run"),
        ({"model_type": "llama", "layer_types": ["full_attention", "conv"]}, "type conv"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "awq"}}, "'awq'"),
        ({}, "names no model_type"),
    ],
)
def test_refusal_says_why(config, reason):
    route, refusal = route_of(config)

    assert route == "refused"
    assert reason in refusal


def test_native_route_is_decided_without_torch():
    code = (
        "import sys; from millrace.engine.routes import route_of;"
        "assert route_of({'model_type': 'llama'})[0] == 'native';"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code], check=True)
