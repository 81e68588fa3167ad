"""Whether a running process still answers, asked again and again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from .ping import answers
from .wiring import Instance

PING_EVERY_S = 5.0


class Liveness:
    """Pings one process. A process is stalled after `max_stall_s` without an answer."""

    def __init__(
        self,
        instance: Instance,
        max_stall_s: float,
        *,
        ask: Callable[[Instance, float], Awaitable[bool]] = answers,
    ) -> None:
        self._instance = instance
        self._max_stall_s = max_stall_s
        self._ask = ask
        self._interval_s = min(PING_EVERY_S, max_stall_s / 12)

    async def changes(self) -> AsyncIterator[bool]:
        """Whether it answers, whenever that changes; ends if the process is stalled."""
        is_answering = True
        answered_s = time.monotonic()
        while True:
            await asyncio.sleep(self._interval_s)
            asked_s = time.monotonic()
            if await self._ask(self._instance, self._interval_s):
                answered_s = time.monotonic()
            elif asked_s - answered_s >= self._max_stall_s:
                return
            if is_answering != (answered_s >= asked_s):
                is_answering = not is_answering
                yield is_answering
