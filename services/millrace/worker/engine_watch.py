"""Ends the worker when its engine is lost: a process that cannot generate must not look alive."""

from __future__ import annotations

import asyncio
import time

from millrace.core.errors import InternalError

from .engine_loop import EngineLoop

CHECK_EVERY_S = 0.25


class EngineLost(InternalError):
    """The engine's thread has ended, or hangs for good."""


async def watch_engine(loop: EngineLoop, max_stall_s: float) -> None:
    """Until cancelled. Raises `EngineLost` where the thread has ended or where a step has stood
    still for `max_stall_s`; 0 allows any time."""
    progress, moved_s = loop.progress, time.monotonic()
    while True:
        await asyncio.sleep(CHECK_EVERY_S)
        if loop.failure is not None:
            raise EngineLost(loop.failure.message)
        if not loop.is_stepping or loop.progress != progress:
            progress, moved_s = loop.progress, time.monotonic()
        stalled_s = time.monotonic() - moved_s
        if 0 < max_stall_s < stalled_s:
            raise EngineLost(f"a step has stood still for {stalled_s:.0f} s")
