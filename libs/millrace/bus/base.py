"""What services ask of the message bus, as Protocols; `nats.py` is real, `memory.py` for tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from millrace.core.dead_letter import DeadLetter
from millrace.core.membership import SchedulerOwner, WorkerLoad, WorkerRegistration
from millrace.core.request import Priority, QueuedRequest


@dataclass(frozen=True, slots=True)
class IntakeLoad:
    """How full the intake queue is: all of it, and what of one model nobody has fetched yet.

    A limit of 0 is none.
    """

    num_messages: int
    num_bytes: int
    max_messages: int
    max_bytes: int
    num_pending: Mapping[Priority, int]

    @property
    def usage(self) -> float:
        """The fuller of the two, from 0 to 1."""
        pairs = ((self.num_messages, self.max_messages), (self.num_bytes, self.max_bytes))
        return max((used / most for used, most in pairs if most > 0), default=0.0)


class HeldRequest(Protocol):
    """A delivered request that its scheduler holds until it is terminal.

    `request` is None where the payload cannot be read, and `dead_letter` then its record;
    `num_delivered` counts from 1; `published_unix_ns` is when the queue took it in.
    """

    request: QueuedRequest | None
    dead_letter: DeadLetter | None
    num_delivered: int
    published_unix_ns: int

    async def in_progress(self) -> None:
        """Keeps it from being delivered to somebody else."""

    async def acknowledge(self) -> None:
        """Removes it from the queue; returns when the server has confirmed."""

    async def give_back(self, delay_s: float = 0.0) -> None:
        """Has it delivered again."""

    async def discard(self) -> None:
        """Removes it as unreadable."""


class WorkQueue(Protocol):
    """The requests of one model and priority."""

    async def fetch(self, max_requests: int, timeout_s: float) -> list[HeldRequest]:
        """Up to `max_requests`, as soon as there is one; empty after `timeout_s`.

        Raises `Unavailable` where the bus cannot be reached.
        """


class Bus(Protocol):
    """One connection of one service."""

    @property
    def is_connected(self) -> bool:
        """True while the server answers."""

    async def publish_request(self, request: QueuedRequest, headers: Mapping[str, str]) -> None:
        """Returns when the queue has the request for good: the acceptance.

        Raises `Overloaded` where the queue is full, `OutOfStorage` where its disk is,
        `PayloadTooLarge`, `Unavailable`.
        """

    async def work_queue(self, model: str, priority: Priority) -> WorkQueue:
        """Raises `ConfigError` where it is not as `millrace bus init` makes it, or missing."""

    async def intake_load(self, model: str) -> IntakeLoad:
        """How full the queue is. Raises `Unavailable`."""

    async def publish_abort(self, request_id: str) -> None:
        """Tells every scheduler to end a request. Raises `Unavailable`."""

    def aborts(self) -> AsyncIterator[str]:
        """Ids of requests to end."""

    async def publish_dead_letter(self, letter: DeadLetter) -> None:
        """Keeps the record of a request that was given up. Raises `Unavailable`."""

    async def register_worker(self, registration: WorkerRegistration) -> None:
        """Writes or renews a worker's entry."""

    async def unregister_worker(self, worker_id: str) -> None:
        """Removes a worker's entry."""

    async def publish_load(self, load: WorkerLoad) -> None:
        """Tells a worker's load to whoever listens."""

    def workers(self) -> AsyncIterator[tuple[str, WorkerRegistration | None]]:
        """Entries as they are, then as they change; None where one has gone."""

    async def claim_ownership(self, owner: SchedulerOwner) -> int | None:
        """Takes or renews the ownership of a model; None where another scheduler holds it.

        On success the epoch in force: `owner.owner_epoch` on a renewal, else
        max(previous + 1, `owner.owner_epoch`).
        """

    async def release_ownership(self, owner: SchedulerOwner) -> None:
        """Gives the ownership up, if it is still this scheduler's."""

    def owners(self) -> AsyncIterator[tuple[str, SchedulerOwner | None]]:
        """(model slug, owner) as they are, then as they change; None where one has gone."""

    async def close(self) -> None:
        """Ends the connection."""
