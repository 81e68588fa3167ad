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

    def __post_init__(self) -> None:
        _check_choice("dtype", self.dtype, ("auto", *DTYPES))
        _check_choice("route", self.route, ROUTES)
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
    config: EngineConfig, checkpoint: Mapping[str, Any], *, has_cuda: bool
) -> EngineConfig:
    """The same settings with dtype, device, backend and thread count decided.

    `checkpoint` is the content of the model's config.json.
    """
    device = config.device
    if device == "auto":
        device = "cuda" if has_cuda else "cpu"
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise ConfigError(f"device is {device!r}; allowed are auto, cpu and cuda", field="device")
    if device != "cpu" and not has_cuda:
        raise ConfigError(f"device is {device!r} but torch sees no CUDA device", field="device")
    return replace(
        config,
        device=device,
        dtype=_resolve_dtype(config.dtype, checkpoint_dtype(checkpoint), device),
        backend="torch" if config.backend == "auto" else config.backend,
        num_threads=config.num_threads or usable_cpus(),
    )


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


def _resolve_dtype(asked: str, declared: str, device: str) -> str:
    if asked != "auto":
        return asked
    if device != "cpu":
        return declared if declared in DTYPES else "float32"
    # Without the instructions, bfloat16 arithmetic on a CPU is slower than float32.
    return "bfloat16" if declared == "bfloat16" and cpu_has_bf16() else "float32"


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}; allowed are {', '.join(allowed)}", field=name)
