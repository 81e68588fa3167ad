"""How busy the worker is."""

from __future__ import annotations

import os
from pathlib import Path

from millrace.core.membership import WorkerLoad

from .engine_loop import EngineLoop


def current_load(worker_id: str, loop: EngineLoop) -> WorkerLoad:
    """The load now."""
    return WorkerLoad(
        worker_id=worker_id,
        num_rows=loop.num_rows,
        num_steps=loop.num_steps,
        last_step_ns=loop.last_step_ns,
        resident_bytes=resident_bytes(),
        num_sampled_tokens=loop.num_sampled_tokens,
    )


def resident_bytes() -> int:
    """Memory of this process in RAM; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        return 0
    return int(statm.read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
