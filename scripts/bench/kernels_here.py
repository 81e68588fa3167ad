"""The CPU kernels of this machine, from the same cache as the stack's."""

from __future__ import annotations

from pathlib import Path

from millrace.config.home import millrace_home
from millrace.engine.config import EngineConfig
from millrace.engine.kernels.cpu.library import Kernels
from millrace.engine.kernels.cpu.load import load_kernels

from .progress import show_progress


def kernels_here(model: Path, num_threads: int = 0) -> Kernels | None:
    """With so many threads, 0 is one per core; None where plain torch runs instead."""
    cache_dir = millrace_home().cache
    config = EngineConfig(model, model.name, cache_dir=cache_dir, num_threads=num_threads)
    return load_kernels(config, show_progress)
