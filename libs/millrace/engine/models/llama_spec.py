"""The numbers of a Llama-like model, read from config.json as transformers reads it.

transformers itself is not asked: importing it takes about a second and 100 MB of every worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from millrace.core.errors import UnsupportedModel

_ROPE_NUMBERS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}
# What transformers takes where config.json is silent, where the types differ.
_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "llama": {
        "vocab_size": 32_000,
        "intermediate_size": 11_008,
        "max_position_embeddings": 2048,
    },
    "mistral": {
        "vocab_size": 32_000,
        "intermediate_size": 14_336,
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": {
        "vocab_size": 151_936,
        "intermediate_size": 22_016,
        "max_position_embeddings": 32_768,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
    },
    "qwen3": {
        "vocab_size": 151_936,
        "intermediate_size": 22_016,
        "max_position_embeddings": 32_768,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "sliding_window": 4096,
    },
}
_MAX_WINDOW_LAYERS = 28
# Far more than any model has: products of a few counts stay below 2^63, and a layer's worth of
# anything can be made for each.
_MOST = (1 << 31) - 1
_MOST_LAYERS = 10_000


@dataclass(frozen=True, slots=True)
class LlamaSpec:
    """What shapes the computation. `windows`: of each layer, None where it attends to all."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_positions: int
    rope: Mapping[str, Any]
    windows: tuple[int | None, ...]
    tied: bool
    has_qk_norm: bool
    has_qkv_bias: bool
    has_o_bias: bool
    has_mlp_bias: bool

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> LlamaSpec:
        """Reads the content of config.json. Raises `UnsupportedModel`, which names the field."""
        fields = _Fields(config)
        num_heads = fields.count("num_attention_heads", 32)
        hidden_size = fields.count("hidden_size", 4096)
        num_layers = fields.count("num_hidden_layers", 32, most=_MOST_LAYERS)
        if "head_dim" not in fields and hidden_size % num_heads:
            raise _invalid("hidden_size", f"{hidden_size}, no multiple of {num_heads} heads")
        is_null = config.get("num_key_value_heads", 0) is None
        num_kv_heads = num_heads if is_null else fields.count("num_key_value_heads", num_heads)
        if num_heads % num_kv_heads:
            raise _invalid(
                "num_key_value_heads", f"{num_kv_heads}, which does not divide {num_heads}"
            )
        head_dim = fields.count("head_dim", hidden_size // num_heads)
        if head_dim % 2:
            raise _invalid("head_dim", f"{head_dim}; positions turn pairs of numbers")
        max_positions = fields.count("max_position_embeddings")
        model_type = config["model_type"]
        has_attention_bias = model_type in ("llama", "qwen3") and bool(config.get("attention_bias"))
        return LlamaSpec(
            vocab_size=fields.count("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=fields.count("intermediate_size"),
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            norm_eps=fields.number("rms_norm_eps", 1e-6),
            max_positions=max_positions,
            rope=_rope(config, max_positions),
            windows=_windows(config, fields, num_layers),
            tied=bool(config.get("tie_word_embeddings", False)),
            has_qk_norm=model_type == "qwen3",
            has_qkv_bias=model_type == "qwen2" or has_attention_bias,
            has_o_bias=has_attention_bias,
            has_mlp_bias=model_type == "llama" and bool(config.get("mlp_bias")),
        )


class _Fields:
    """Values of config.json with the defaults of its model type."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._values = {**_DEFAULTS[config["model_type"]], **_but_nulls(config)}

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def count(self, name: str, default: int | None = None, most: int = _MOST) -> int:
        """A whole number of at least 1 and at most `most`."""
        value = self._values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise _invalid(name, f"{value!r}, not a whole number of at least 1")
        if value > most:
            raise _invalid(name, f"over {most}, the most that is served")
        return value

    def number(self, name: str, default: float) -> float:
        """A number."""
        return _number(name, self._values.get(name, default))


def _rope(config: Mapping[str, Any], max_positions: int) -> dict[str, Any]:
    """Rotary parameters: `rope_type`, `rope_theta` and what the type needs besides."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    theta = config.get("rope_theta")
    kind = given.get("rope_type", given.get("type", "default"))
    rope = {"rope_theta": 10_000.0 if theta is None else theta, **given, "rope_type": kind}
    if kind == "llama3":
        trained = config.get("original_max_position_embeddings")
        trained = trained or rope.get("original_max_position_embeddings", max_positions)
        rope["original_max_position_embeddings"] = trained
    for name in ("rope_theta", *_ROPE_NUMBERS[kind]):
        if _number(name, rope.get(name)) <= 0:
            raise _invalid(name, f"{rope[name]}; it must be over 0")
    return rope


def _windows(config: Mapping[str, Any], fields: _Fields, num_layers: int) -> tuple[int | None, ...]:
    """Llama has no windows; Qwen has them from a layer on, or as `layer_types` says."""
    model_type = config["model_type"]
    is_off = "sliding_window" in config and config["sliding_window"] is None
    if model_type == "llama" or is_off:
        return (None,) * num_layers
    window = fields.count("sliding_window")
    if model_type == "mistral":
        return (window,) * num_layers
    if not config.get("use_sliding_window", False):
        return (None,) * num_layers
    kinds = config.get("layer_types")
    if kinds is None:
        first = config.get("max_window_layers", _MAX_WINDOW_LAYERS)
        return tuple(window if index >= first else None for index in range(num_layers))
    if len(kinds) != num_layers:
        raise _invalid("layer_types", f"{len(kinds)} long, for {num_layers} layers")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _but_nulls(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if value is not None}


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid(name, f"{value!r}, not a number")
    return float(value)


def _invalid(name: str, what: str) -> UnsupportedModel:
    return UnsupportedModel(f"config.json is not valid: {name} is {what}")
