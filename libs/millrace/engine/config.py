"""What an engine is asked to be, and what that means on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from millrace.core.errors import ConfigError

from .machine import cpu_has_bf16, usable_cpus

DTYPES = ("float32", "bfloat16", "float16")
ROUTES = ("auto", "native", "generic")
QUANTIZATIONS = ("none", "int8", "int4")
KV_DTYPES = ("auto", "int8")

# Tokens of a tile of the cpu backend: its blocks are whole tiles.
CPU_BLOCK_TOKENS = 32


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of one engine; 0 and "auto" mean: chosen by `resolve_config` or from the checkpoint.

    Raises `ConfigError` where a value is out of range.
    """

    model_path: Path
    name: str
    aliases: tuple[str, ...] = ()
    revision: str = ""
    dtype: str = "auto"
    device: str = "auto"
    backend: str = "auto"
    route: str = "auto"
    num_blocks: int = 0
    block_size: int = 32
    max_num_seqs: int = 64
    max_model_len: int = 0
    num_threads: int = 0
    quantization: str = "none"
    kv_dtype: str = "auto"
    instruction_path: str = "auto"
    cache_dir: Path | None = None

    def __post_init__(self) -> None:
        _check_choice("dtype", self.dtype, ("auto", *DTYPES))
        _check_choice("route", self.route, ROUTES)
        _check_choice("quantization", self.quantization, QUANTIZATIONS)
        _check_choice("kv_dtype", self.kv_dtype, KV_DTYPES)
        for name, low in (
            ("num_blocks", 0),
            ("block_size", 1),
            ("max_num_seqs", 1),
            ("max_model_len", 0),
            ("num_threads", 0),
        ):
            value = getattr(self, name)
            if value < low:
                raise ConfigError(f"{name} is {value}; the least is {low}", field=name)


def resolve_config(
    config: EngineConfig,
    checkpoint: Mapping[str, Any],
    *,
    has_cuda: bool,
    has_kernels: bool = False,
) -> EngineConfig:
    """The same settings with dtype, device, backend and thread count decided.

    `checkpoint` is the content of the model's config.json; `has_kernels` is True where the C++
    kernels run on this CPU.
    """
    device = config.device
    if device == "auto":
        device = "cuda" if has_cuda else "cpu"
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"device is {device!r}; allowed are auto, cpu and cuda", field="device")
    if device != "cpu" and not has_cuda:
        raise ConfigError(f"device is {device!r} but torch sees no CUDA device", field="device")
    backend = _resolve_backend(config, device, has_kernels)
    if backend != "cpu" and (config.quantization != "none" or config.kv_dtype != "auto"):
        raise ConfigError(
            f"quantization and kv_dtype need the cpu backend; this engine runs on {backend}",
            field="quantization",
        )
    has_bf16 = device != "cpu" or backend == "cpu" or cpu_has_bf16()
    return replace(
        config,
        device=device,
        dtype=_resolve_dtype(config, checkpoint_dtype(checkpoint), device, has_bf16),
        backend=backend,
        num_threads=config.num_threads or usable_cpus(),
    )


def _resolve_backend(config: EngineConfig, device: str, has_kernels: bool) -> str:
    if config.backend == "cpu" and device != "cpu":
        raise ConfigError(f"backend is 'cpu', but the device is {device!r}", field="backend")
    if config.backend == "cpu" and config.dtype == "float16":
        raise ConfigError("the cpu backend computes in float32 or bfloat16", field="dtype")
    if config.backend != "auto":
        return config.backend
    fits = device == "cpu" and has_kernels and config.dtype != "float16"
    return "cpu" if fits and config.block_size % CPU_BLOCK_TOKENS == 0 else "torch"


def weight_kind(config: EngineConfig) -> str:
    """How matrices are stored under resolved settings: "int8", "int4" or the dtype."""
    return config.dtype if config.quantization == "none" else config.quantization


def head_kind(kind: str) -> str:
    """How the head is stored beside matrices of `kind`: in 8 bits beside 4, as 4-bit files do."""
    return "int8" if kind == "int4" else kind


def checkpoint_dtype(checkpoint: Mapping[str, Any]) -> str:
    """The dtype that config.json declares, "float32" where it declares none."""
    text = checkpoint.get("text_config") or {}
    declared = (
        checkpoint.get("dtype")
        or checkpoint.get("torch_dtype")
        or text.get("dtype")
        or text.get("torch_dtype")
        or "float32"
    )
    return str(declared).removeprefix("torch.")


def _resolve_dtype(config: EngineConfig, declared: str, device: str, has_bf16: bool) -> str:
    if config.dtype != "auto":
        return config.dtype
    if config.quantization != "none":
        # K/V and what lies between the matrices; the matrices themselves are narrower.
        return "bfloat16"
    if device != "cpu":
        return declared if declared in DTYPES else "float32"
    # Plain torch without the instructions is slower in bfloat16 than in float32.
    return "bfloat16" if declared == "bfloat16" and has_bf16 else "float32"


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; allowed are {', '.join(allowed)}", field=name)
