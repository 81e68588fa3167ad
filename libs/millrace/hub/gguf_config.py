"""config.json and generation_config.json from the keys of a GGUF file."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from millrace.engine.models.checkpoint_check import refusals_naming
from millrace.engine.models.llama_spec import LlamaSpec

from .gguf_advice import USE_FOLDER, advice_for
from .gguf_header import shown
from .gguf_metadata import MOST_FLOAT, GgufMetadata
from .gguf_vocabulary import Vocabulary

# GGUF architecture → model_type and class of the checkpoint.
_ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
}
_NO_TEXT = "embedding, reward and classifying models are not served"
_OTHER = "which computes something else than its architecture does"
# Keys that change what is computed, the values with which they do not, and what is wrong otherwise.
_NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "attention.causal": ((True,), _NO_TEXT),
    "pooling_type": ((0,), _NO_TEXT),
    **{
        key: ((0.0, 1.0), _OTHER)
        for key in ("attention.output_scale", "embedding_scale", "logit_scale", "residual_scale")
    },
    **{
        key: ((0.0,), _OTHER)
        for key in (
            "attention.clamp_kqv",
            "attention.max_alibi_bias",
            "attention.scale",
            "attn_logit_softcapping",
            "final_logit_softcapping",
        )
    },
}
_NEUTRAL_ROPE: dict[str, tuple[Any, ...]] = {
    "rope.scale_linear": (0.0, 1.0),
    "rope.scaling.factor": (0.0, 1.0),
    "rope.scaling.type": ("none",),
}
# generation_config.json's names of what newer files say about drawing tokens.
_SAMPLING = {
    "temp": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def check_importable(metadata: GgufMetadata, tensor_names: Collection[str]) -> str:
    """The architecture. Raises UnsupportedModel for one that is not imported or is varied.

    Looks at single keys only, so that a refusal does not wait for the vocabulary.
    """
    kind = metadata.try_text("general.type")
    if kind not in (None, "model"):
        raise metadata.wrong("general.type", "no model of its own")
    architecture = metadata.try_text("general.architecture")
    if architecture is None:
        raise metadata.fault("GGUF key 'general.architecture' is missing")
    if architecture not in _ARCHITECTURES:
        raise metadata.fault(
            f"GGUF architecture {shown(architecture)} (general.architecture) is not importable "
            f"(only {', '.join(sorted(_ARCHITECTURES))} are); {advice_for(architecture)}"
        )
    experts = f"{architecture}.expert_count"
    if metadata.try_whole(experts):
        raise metadata.wrong(
            experts, f"and mixture-of-experts models are not importable; {USE_FOLDER}"
        )
    for name, (neutral, reason) in _NEUTRAL.items():
        key = f"{architecture}.{name}"
        if key in metadata and metadata.value(key) not in neutral:
            raise metadata.wrong(key, reason)
    _check_rotation(metadata, architecture, tensor_names)
    return architecture


def _check_rotation(
    metadata: GgufMetadata, architecture: str, tensor_names: Collection[str]
) -> None:
    found = ["rope_freqs.weight"] if "rope_freqs.weight" in tensor_names else []
    for name, neutral in _NEUTRAL_ROPE.items():
        key = f"{architecture}.{name}"
        if key in metadata and metadata.value(key) not in neutral:
            found.append(f"{key} {shown(metadata.value(key))}")
    if found:
        raise metadata.fault(
            f"GGUF models with scaled rotary positions ({', '.join(found)}) are not importable; "
            f"{USE_FOLDER}"
        )


def config_json(
    metadata: GgufMetadata, architecture: str, vocab_size: int, tensor_names: Collection[str]
) -> dict[str, Any]:
    """The checkpoint's config.json. Raises UnsupportedModel for numbers that do not fit together.

    architecture: what `check_importable` gave.
    """
    model_type, class_name = _ARCHITECTURES[architecture]

    def count(name: str) -> int:
        return metadata.whole(f"{architecture}.{name}", least=1)

    def try_count(name: str, default: int) -> int:
        return metadata.try_whole(f"{architecture}.{name}", least=1) or default

    num_heads, hidden_size = count("attention.head_count"), count("embedding_length")
    num_kv_heads = try_count("attention.head_count_kv", num_heads)
    if num_heads % num_kv_heads:
        raise metadata.wrong(
            f"{architecture}.attention.head_count_kv", f"which does not divide {num_heads} heads"
        )
    if f"{architecture}.attention.key_length" not in metadata and hidden_size % num_heads:
        raise metadata.wrong(
            f"{architecture}.attention.head_count", f"which does not divide {hidden_size}"
        )
    head_dim = try_count("attention.key_length", max(1, hidden_size // num_heads))
    width = f"{architecture}.attention.key_length"
    for name in ("attention.value_length", "rope.dimension_count"):
        if try_count(name, head_dim) != head_dim:
            raise metadata.wrong(
                f"{architecture}.{name}", f"but a head's keys are {head_dim} wide ({width})"
            )
    if head_dim % 2:
        raise metadata.fault(f"its heads are {head_dim} wide ({width}), which no rotation halves")
    num_layers = count("block_count")
    if num_layers > len(tensor_names):
        raise metadata.wrong(
            f"{architecture}.block_count", f"but there are {len(tensor_names)} tensors"
        )
    theta = f"{architecture}.rope.freq_base"
    config: dict[str, Any] = {
        "architectures": [class_name],
        "model_type": model_type,
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": count("feed_forward_length"),
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": count("context_length"),
        "rms_norm_eps": _shortest(
            metadata.positive(f"{architecture}.attention.layer_norm_rms_epsilon", below=1.0)
        ),
        "rope_theta": _shortest(metadata.positive(theta)) if theta in metadata else 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": "output.weight" not in tensor_names,
        "attention_bias": architecture != "qwen2" and "blk.0.attn_q.bias" in tensor_names,
        "mlp_bias": architecture == "llama" and "blk.0.ffn_gate.bias" in tensor_names,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": "bfloat16",
    }
    # The loader has the last word about which numbers go together.
    with refusals_naming(metadata.path):
        LlamaSpec.from_config(config)
    return config


def generation_config_json(metadata: GgufMetadata, vocabulary: Vocabulary) -> dict[str, Any]:
    """generation_config.json: the ids that start, pad and end a text, and how to draw tokens."""
    ids: dict[str, Any] = vocabulary.special_ids()
    ends = vocabulary.end_ids()
    if ends:
        ids["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    return ids | dict(_sampling(metadata))


def _sampling(metadata: GgufMetadata) -> Iterator[tuple[str, float]]:
    for name, field in _SAMPLING.items():
        key = f"general.sampling.{name}"
        if key not in metadata:
            continue
        value = metadata.value(key)
        if type(value) not in (int, float) or not abs(value) < MOST_FLOAT:
            raise metadata.wrong(key, "no finite number")
        yield field, _shortest(value) if isinstance(value, float) else value


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05, not 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))
