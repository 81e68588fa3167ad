"""A bus in memory that can be away for a while, and on which what is not renewed expires."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from millrace.bus.base import HeldRequest, IntakeLoad, WorkQueue
from millrace.bus.memory import MemoryBus
from millrace.core.errors import Unavailable
from millrace.core.membership import SchedulerOwner
from millrace.core.model import model_slug
from millrace.core.request import Priority, QueuedRequest

# As on the real one, in a fraction of the time.
ACK_WAIT_S = 1.0
OWNER_TTL_S = 1.0
LOOK_EVERY_S = 0.05


class FlakyBus(MemoryBus):
    """While `is_out`, every call that a server answers raises `Unavailable`."""

    def __init__(self) -> None:
        super().__init__()
        self.is_out = False
        self.held: set[FlakyHeld] = set()
        self._renewed_s: dict[str, float] = {}

    async def run(self) -> None:
        """Lets time do its work, until cancelled.

        It stands still while this process is held up, when nobody could renew. What was delivered
        before an outage that outlasts its time is delivered again after it.
        """
        while True:
            began_s = time.monotonic()
            await asyncio.sleep(LOOK_EVERY_S)
            late_s = time.monotonic() - began_s - LOOK_EVERY_S
            for held in self.held:
                held.touched_s += late_s
            for key in self._renewed_s:
                self._renewed_s[key] += LOOK_EVERY_S + late_s if self.is_out else late_s
            if not self.is_out:
                await self._expire(time.monotonic())

    def check(self) -> None:
        """Raises where nobody answers."""
        if self.is_out:
            raise Unavailable("the message bus does not answer", retry_after_s=1.0)

    async def publish_request(self, request: QueuedRequest, headers: Mapping[str, str]) -> None:
        self.check()
        await super().publish_request(request, headers)

    async def work_queue(self, model: str, priority: Priority) -> WorkQueue:
        return FlakyQueue(self, await super().work_queue(model, priority))

    async def intake_load(self, model: str) -> IntakeLoad:
        self.check()
        return await super().intake_load(model)

    async def publish_abort(self, request_id: str) -> None:
        self.check()
        await super().publish_abort(request_id)

    async def claim_ownership(self, owner: SchedulerOwner) -> int | None:
        self.check()
        epoch = await super().claim_ownership(owner)
        if epoch is not None:
            self._renewed_s[model_slug(owner.model)] = time.monotonic()
        return epoch

    async def release_ownership(self, owner: SchedulerOwner) -> None:
        self.check()
        await super().release_ownership(owner)

    async def _expire(self, now_s: float) -> None:
        for held in [held for held in self.held if now_s - held.touched_s > ACK_WAIT_S]:
            await held.expire()
        for key in [key for key, then_s in self._renewed_s.items() if now_s - then_s > OWNER_TTL_S]:
            del self._renewed_s[key]
            self._owners.put(key, None)


class FlakyQueue(WorkQueue):
    """Counts the time of what it has delivered."""

    def __init__(self, bus: FlakyBus, queue: WorkQueue) -> None:
        self._bus = bus
        self._queue = queue

    async def fetch(self, max_requests: int, timeout_s: float) -> list[HeldRequest]:
        self._bus.check()
        batch = await self._queue.fetch(max_requests, min(timeout_s, ACK_WAIT_S))
        return [FlakyHeld(self._bus, held) for held in batch]


class FlakyHeld(HeldRequest):
    """One delivery; it is over when it is settled or when nobody has renewed it."""

    def __init__(self, bus: FlakyBus, held: HeldRequest) -> None:
        self.request = held.request
        self.dead_letter = held.dead_letter
        self.num_delivered = held.num_delivered
        self.published_unix_ns = held.published_unix_ns
        self.touched_s = time.monotonic()
        self._bus = bus
        self._held = held
        bus.held.add(self)

    async def in_progress(self) -> None:
        self._bus.check()
        self.touched_s = time.monotonic()

    async def acknowledge(self) -> None:
        if self._end():
            await self._held.acknowledge()

    async def give_back(self, delay_s: float = 0.0) -> None:
        if self._end():
            await self._held.give_back(delay_s)

    async def discard(self) -> None:
        if self._end():
            await self._held.discard()

    async def expire(self) -> None:
        self._bus.held.discard(self)
        await self._held.give_back()

    def _end(self) -> bool:
        """False where the message is another delivery's by now."""
        self._bus.check()
        is_held = self in self._bus.held
        self._bus.held.discard(self)
        return is_held
