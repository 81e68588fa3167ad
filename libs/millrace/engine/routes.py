"""Which route a checkpoint takes, or why it cannot be served; decided from config.json alone.

The native route is decided without importing torch. The generic one needs the flags of the model's
class and imports transformers when it comes to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .quantized import declared_method
from .quiet_transformers import quiet_transformers

NATIVE_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
NATIVE_ROPE_TYPES = frozenset({"default", "linear", "llama3"})
PLAIN_LAYER_TYPES = frozenset({"full_attention", "sliding_attention"})
# How the classes are called that end in a head over the vocabulary.
_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ModelWithLMHead", "ForConditionalGeneration")

_RECURRENT = "it keeps a recurrent state, which a paged KV cache does not hold"
_SPARSE = "its sparse attention index is not kept in the KV cache"
_SHARED = "its layers share K/V with other layers"
_ENCODER = "it is an encoder; its attention is not causal"

# What the flags of transformers do not tell.
REFUSED_TYPES: dict[str, str] = {
    **dict.fromkeys(
        ("mamba", "mamba2", "falcon_mamba", "jamba", "bamba", "zamba", "zamba2", "rwkv", "xlstm"),
        _RECURRENT,
    ),
    **dict.fromkeys(
        ("nemotron_h", "falcon_h1", "granitemoehybrid", "lfm2", "lfm2_moe", "lfm3", "minimax"),
        _RECURRENT,
    ),
    **dict.fromkeys(
        ("recurrent_gemma", "zaya", "hrm_text", "kimi_linear", "olmo_hybrid", "bailing_hybrid"),
        _RECURRENT,
    ),
    **dict.fromkeys(
        ("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"), _RECURRENT
    ),
    **dict.fromkeys(("deepseek_v32", "deepseek_v4", "glm_moe_dsa", "minimax_m3_vl_text"), _SPARSE),
    **dict.fromkeys(("gemma3n", "gemma3n_text", "gemma4", "gemma4_text"), _SHARED),
    **dict.fromkeys(("gemma4_unified", "gemma4_unified_text"), _SHARED),
    **dict.fromkeys(
        ("bert", "bert-generation", "camembert", "data2vec-text", "electra", "ernie"), _ENCODER
    ),
    **dict.fromkeys(
        ("roberta", "roberta-prelayernorm", "roc_bert", "xlm-roberta", "xlm-roberta-xl", "xmod"),
        _ENCODER,
    ),
    "diffllama": "its layers attend twice",
    "doge": "it makes an attention mask of its own",
    "nemotron": "its attention does not pass on keyword arguments",
    "llama4": "its chunked attention is not supported",
    "llama4_text": "its chunked attention is not supported",
    "mllama": "it attends to images by cross attention",
}


def route_of(config: Mapping[str, Any]) -> tuple[str, str]:
    """("native" | "generic" | "refused", reason of a refusal or "") for a config.json's content."""
    refusal = _refusal_by_config(config)
    if not refusal and is_native(config):
        return "native", ""
    refusal = refusal or _refusal_by_class(config)
    return ("refused", refusal) if refusal else ("generic", "")


def is_native(config: Mapping[str, Any]) -> bool:
    """True where the native route computes this model exactly."""
    rope = _rope(config)
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    return (
        config.get("model_type") in NATIVE_TYPES
        and config.get("hidden_act", "silu") in ("silu", "swish")
        and str(rope_type) in NATIVE_ROPE_TYPES
        and partial in (None, 1.0)
    )


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return given if isinstance(given, Mapping) else {"rope_type": given}


def _refusal_by_config(config: Mapping[str, Any]) -> str:
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return "config.json names no model_type"
    if config.get("is_encoder_decoder"):
        return f"{model_type}: encoder-decoder models are not supported"
    if model_type in REFUSED_TYPES:
        return f"{model_type}: {REFUSED_TYPES[model_type]}"
    if config.get("auto_map") and not _is_known_type(model_type):
        return f"{model_type}: it needs code from its repository, which is never run"
    if method := declared_method(config):
        return f"{model_type}: weights quantized by {method!r} are not loaded"
    refusal = _refusal_by_layers(config.get("layer_types"))
    refusal = refusal or _refusal_by_architectures(config.get("architectures"))
    return f"{model_type}: {refusal}" if refusal else ""


def _refusal_by_layers(layer_types: Any) -> str:
    if not isinstance(layer_types, list | tuple | None):
        return f"its layer_types are {layer_types!r}, not a list"
    foreign = sorted({str(kind) for kind in layer_types or ()} - PLAIN_LAYER_TYPES)
    return f"layers of type {', '.join(foreign)} are not supported" if foreign else ""


def _refusal_by_architectures(names: Any) -> str:
    """Why the classes that a checkpoint was saved from write no text; "" if one does."""
    if not names:
        return ""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return f"its architectures are {names!r}, not a list of names"
    if any(name.endswith(_LANGUAGE_MODELS) for name in names):
        return ""
    return (
        f"it was saved from {names[0]}, which has no head that writes text; embedding, reward "
        "and classifying models are not served"
    )


def _is_known_type(model_type: str) -> bool:
    if model_type in NATIVE_TYPES:
        return True
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _refusal_by_class(config: Mapping[str, Any]) -> str:
    model_type = str(config["model_type"])
    if not _is_known_type(model_type):
        return f"{model_type}: transformers has no causal language model of this type"
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    settings = {key: value for key, value in config.items() if key != "model_type"}
    try:
        with quiet_transformers():
            parsed = AutoConfig.for_model(model_type, **settings)
    # Each configuration class has its own ways of refusing values.
    except Exception as error:
        return f"{model_type}: its config.json is not valid: {error}"
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(parsed)]
    if getattr(parsed, "is_encoder_decoder", False):
        return f"{model_type}: encoder-decoder models are not supported"
    if not getattr(model_class, "_supports_attention_backend", False):
        return f"{model_type}: its code in transformers does not let other attention in"
    if getattr(model_class, "_is_stateful", False):
        return f"{model_type}: {_RECURRENT}"
    if getattr(parsed, "num_kv_shared_layers", 0):
        return f"{model_type}: {_SHARED}"
    if getattr(parsed, "use_bidirectional_attention", None):
        return f"{model_type}: its attention is not causal"
    refusal = _refusal_by_layers(getattr(parsed, "layer_types", None))
    return f"{model_type}: {refusal}" if refusal else ""
