"""Which route a config.json leads to."""

from __future__ import annotations

import subprocess
import sys

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from millrace.engine.routes import _refusal_by_architectures as refusal_by_classes
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
        ({"model_type": "llama", "quantization_config": {"bits": 4}}, "'unknown'"),
        ({"model_type": "phi3", "compression_config": {"format": "x"}}, "'compressed-tensors'"),
        ({"model_type": "qwen3", "quantization": {"bits": 4, "group_size": 64}}, "'mlx'"),
        ({"model_type": "llama", "architectures": ["LlamaModel"]}, "no head that writes text"),
        ({"model_type": "gpt2", "architectures": ["GPT2Model"]}, "saved from GPT2Model"),
        ({"model_type": "llama", "architectures": "LlamaForCausalLM"}, "not a list of names"),
        ({"model_type": "llama", "architectures": [None]}, "not a list of names"),
        ({"model_type": "llama", "layer_types": 3}, "layer_types are 3, not a list"),
        ({}, "names no model_type"),
    ],
)
def test_refusal_says_why(config, reason):
    route, refusal = route_of(config)

    assert route == "refused"
    assert reason in refusal


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gemma2", "mixtral"])
@pytest.mark.parametrize(
    "head",
    [
        *("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"),
        *("ForRewardModel", "ForProcessRewardModel", "ForEmbedding", "Model", "ForMaskedLM"),
    ],
)
def test_checkpoint_without_a_head_that_writes_text_is_refused(model_type, head):
    name = f"{model_type.title()}{head}"

    route, refusal = route_of({"model_type": model_type, "architectures": [name]})

    assert route == "refused"
    assert refusal.startswith(f"{model_type}: it was saved from {name}, which has no head")


def test_every_causal_class_of_transformers_writes_text():
    # Not by `route_of`, which imports each of them.
    silent = {
        name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() if refusal_by_classes([name])
    }

    # Of an encoder that is refused anyway.
    assert silent == {"BertGenerationDecoder"}


@pytest.mark.parametrize("names", [None, [], ["Gemma3ForConditionalGeneration"]])
def test_silence_and_multimodal_names_are_taken(names):
    assert route_of({"model_type": "gemma3_text", "architectures": names}) == ("generic", "")


def test_native_route_is_decided_without_torch():
    code = (
        "import sys; from millrace.engine.routes import route_of;"
        "assert route_of({'model_type': 'llama'})[0] == 'native';"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code], check=True)


def test_nothing_that_transformers_says_of_a_config_reaches_the_terminal(
    capfd: pytest.CaptureFixture[str],
) -> None:
    rope = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64, "odd": 3}
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_attention_heads": 4}
    odd = {"bos_token_id": 1000, "pad_token_id": -7, "max_position_embeddings": 4096}

    assert route_of({"model_type": "gpt_neox", "rope_parameters": rope} | sizes | odd)[0]
    assert capfd.readouterr() == ("", "")
