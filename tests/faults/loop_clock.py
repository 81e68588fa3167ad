"""Time as the event loop had it: a machine that stands still for a moment is not a slow product."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

TURN_S = 0.005
# Of a longer turn the rest was taken by others: their work, or another process on the machine.
MOST_COUNTED_S = 2 * TURN_S


class LoopClock:
    """Seconds of turns of the loop, each counted as two usual ones at most."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._turned_s = time.monotonic()

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator[LoopClock]:
        """One that goes by itself meanwhile."""
        clock = cls()
        task = asyncio.create_task(clock.run())
        try:
            yield clock
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(TURN_S)
            self.turn()

    def turn(self) -> None:
        """Called about every `TURN_S`."""
        now_s = time.monotonic()
        self.now_s += min(now_s - self._turned_s, MOST_COUNTED_S)
        self._turned_s = now_s
