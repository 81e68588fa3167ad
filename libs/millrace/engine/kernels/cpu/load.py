"""The kernels for an engine's settings, or the reason why it runs without them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from millrace.core.errors import ConfigError
from millrace.engine.machine import usable_cpus

from .build import build_library, can_build
from .instruction_paths import InstructionPath, choose_path

if TYPE_CHECKING:
    from millrace.engine.config import EngineConfig

    from .library import Kernels


def default_cache_dir() -> Path:
    """Where libraries and packed weights go for an engine that was told no other folder.

    The `cache` of MILLRACE_HOME, found as a stack finds it (config/home.py), so that both share it.
    Raises `ConfigError` if nothing says where this user's files are.
    """
    data_home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    home = os.environ.get("MILLRACE_HOME") or f"{data_home}/millrace"
    try:
        return Path(home).expanduser().absolute() / "cache"
    except RuntimeError as error:
        raise ConfigError(f"{error}; set MILLRACE_HOME", field="cache_dir") from error


def buildable_path(asked: str) -> InstructionPath | None:
    """The path that `asked` means on this machine; None where none is or no library can be had."""
    path = choose_path(asked)
    return path if path is not None and can_build(path) else None


def load_kernels(config: EngineConfig, report: Callable[[str], None]) -> Kernels | None:
    """The kernels where `config` may use them, built if need be.

    None where another backend is asked for, or "auto" finds no way; `report` hears why. Raises
    `ConfigError` where the cpu backend is asked for and cannot be.
    """
    if config.backend not in ("auto", "cpu") or config.device not in ("auto", "cpu"):
        return None
    try:
        path = choose_path(config.instruction_path)
        if path is None:
            raise ConfigError("no kernels are written for this CPU", field="backend")
        cache_dir = config.cache_dir or default_cache_dir()
        library = build_library(path, cache_dir / "kernels", report)
        from .library import Kernels

        return Kernels(library, path.name, config.num_threads or usable_cpus())
    except ConfigError as error:
        if config.backend == "cpu" or config.instruction_path != "auto":
            raise
        report(f"the CPU kernels are not used, plain torch runs instead: {error}")
        return None
