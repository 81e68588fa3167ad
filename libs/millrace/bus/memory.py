"""The bus inside one process, for tests that need no server. Same contract as `nats.py`."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Generic, TypeVar

from millrace.core.dead_letter import DeadLetter
from millrace.core.errors import Overloaded
from millrace.core.membership import SchedulerOwner, WorkerLoad, WorkerRegistration
from millrace.core.model import model_slug
from millrace.core.request import Priority, QueuedRequest

from .base import Bus, HeldRequest, IntakeLoad, WorkQueue

Entry = TypeVar("Entry")


class _Bucket(Generic[Entry]):
    """Entries by key, with watchers that see the present and every change."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self._watchers: list[asyncio.Queue[tuple[str, Entry | None]]] = []

    def put(self, key: str, entry: Entry | None) -> None:
        if entry is None:
            self.entries.pop(key, None)
        elif self.entries.get(key) == entry:
            return
        else:
            self.entries[key] = entry
        for watcher in self._watchers:
            watcher.put_nowait((key, entry))

    async def watch(self) -> AsyncIterator[tuple[str, Entry | None]]:
        queue: asyncio.Queue[tuple[str, Entry | None]] = asyncio.Queue()
        for key, entry in self.entries.items():
            queue.put_nowait((key, entry))
        self._watchers.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._watchers.remove(queue)


class MemoryBus(Bus):
    """Every service of a test shares one instance. `max_queued` bounds each work queue."""

    def __init__(self, max_queued: int = 10_000) -> None:
        self._queues: dict[tuple[str, Priority], MemoryWorkQueue] = {}
        self._workers: _Bucket[WorkerRegistration] = _Bucket()
        self._owners: _Bucket[SchedulerOwner] = _Bucket()
        self._last_epoch: dict[str, int] = {}
        self._aborts: list[asyncio.Queue[str]] = []
        self._max_queued = max_queued
        self.loads: dict[str, WorkerLoad] = {}
        self.dead_letters: list[DeadLetter] = []

    @property
    def is_connected(self) -> bool:
        """Always."""
        return True

    async def publish_request(self, request: QueuedRequest, headers: Mapping[str, str]) -> None:
        """See `Bus`."""
        queue = self._queue(request.model, request.priority)
        if queue.num_messages >= self._max_queued:
            raise Overloaded("the intake queue is full", retry_after_s=1.0)
        queue.push(replace(request, traceparent=headers.get("traceparent", "")))

    async def work_queue(self, model: str, priority: Priority) -> WorkQueue:
        """See `Bus`."""
        return self._queue(model, priority)

    def _queue(self, model: str, priority: Priority) -> MemoryWorkQueue:
        return self._queues.setdefault((model, priority), MemoryWorkQueue())

    async def intake_load(self, model: str) -> IntakeLoad:
        """See `Bus`. No bytes are counted here."""
        total = sum(queue.num_messages for queue in self._queues.values())
        pending = {each: self._queue(model, each).num_pending for each in Priority}
        return IntakeLoad(total, 0, self._max_queued * len(Priority), 0, pending)

    async def publish_abort(self, request_id: str) -> None:
        """See `Bus`."""
        for listener in self._aborts:
            listener.put_nowait(request_id)

    async def aborts(self) -> AsyncIterator[str]:
        """See `Bus`."""
        listener: asyncio.Queue[str] = asyncio.Queue()
        self._aborts.append(listener)
        try:
            while True:
                yield await listener.get()
        finally:
            self._aborts.remove(listener)

    async def publish_dead_letter(self, letter: DeadLetter) -> None:
        """See `Bus`."""
        self.dead_letters.append(letter)

    async def register_worker(self, registration: WorkerRegistration) -> None:
        """See `Bus`."""
        self._workers.put(registration.worker_id, registration)

    async def unregister_worker(self, worker_id: str) -> None:
        """See `Bus`."""
        self._workers.put(worker_id, None)

    async def publish_load(self, load: WorkerLoad) -> None:
        """See `Bus`."""
        self.loads[load.worker_id] = load

    def workers(self) -> AsyncIterator[tuple[str, WorkerRegistration | None]]:
        """See `Bus`."""
        return self._workers.watch()

    async def claim_ownership(self, owner: SchedulerOwner) -> int | None:
        """See `Bus`."""
        key = model_slug(owner.model)
        held = self._owners.entries.get(key)
        if held is not None and held.scheduler_id != owner.scheduler_id:
            return None
        least = held.owner_epoch if held else self._last_epoch.get(key, -1) + 1
        epoch = max(least, owner.owner_epoch)
        self._last_epoch[key] = epoch
        self._owners.put(key, replace(owner, owner_epoch=epoch))
        return epoch

    async def release_ownership(self, owner: SchedulerOwner) -> None:
        """See `Bus`."""
        key = model_slug(owner.model)
        held = self._owners.entries.get(key)
        if held is not None and held.scheduler_id == owner.scheduler_id:
            self._owners.put(key, None)

    def owners(self) -> AsyncIterator[tuple[str, SchedulerOwner | None]]:
        """See `Bus`."""
        return self._owners.watch()

    async def close(self) -> None:
        """Nothing to end."""


class MemoryWorkQueue(WorkQueue):
    """A first-in, first-out queue whose messages stay until they are acknowledged."""

    def __init__(self) -> None:
        self._ready: deque[MemoryHeldRequest] = deque()
        self._arrived = asyncio.Event()
        self.num_messages = 0

    @property
    def num_pending(self) -> int:
        """Messages to deliver."""
        return len(self._ready)

    def push(self, request: QueuedRequest) -> None:
        """A new message."""
        self.num_messages += 1
        self.make_ready(MemoryHeldRequest(self, request))

    def make_ready(self, held: MemoryHeldRequest) -> None:
        """A message to deliver, for the first time or again."""
        self._ready.append(held)
        self._arrived.set()

    async def fetch(self, max_requests: int, timeout_s: float) -> list[HeldRequest]:
        """See `WorkQueue`."""
        if not self._ready:
            self._arrived.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._arrived.wait()
            except TimeoutError:
                return []
        batch: list[HeldRequest] = []
        while self._ready and len(batch) < max_requests:
            held = self._ready.popleft()
            held.num_delivered += 1
            batch.append(held)
        return batch


class MemoryHeldRequest(HeldRequest):
    """One message of a `MemoryWorkQueue`."""

    def __init__(self, queue: MemoryWorkQueue, request: QueuedRequest) -> None:
        self._queue = queue
        self._is_settled = False
        self.request: QueuedRequest | None = request
        self.dead_letter: DeadLetter | None = None
        self.num_delivered = 0
        self.published_unix_ns = time.time_ns()

    async def in_progress(self) -> None:
        """Nothing expires here."""

    async def acknowledge(self) -> None:
        """See `HeldRequest`."""
        if not self._is_settled:
            self._is_settled = True
            self._queue.num_messages -= 1

    async def give_back(self, delay_s: float = 0.0) -> None:
        """See `HeldRequest`."""
        if not self._is_settled:
            self._queue.make_ready(self)

    async def discard(self) -> None:
        """See `HeldRequest`."""
        await self.acknowledge()
