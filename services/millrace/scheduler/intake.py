"""Requests from the work queue into the scheduler, and their messages' settlement."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from millrace.bus.base import Bus, HeldRequest, WorkQueue
from millrace.bus.configuration import ACK_WAIT_S
from millrace.core.cancellation import CancelReason
from millrace.core.errors import Aborted, DeadlineExceeded, MillraceError, Overloaded, Unavailable
from millrace.core.membership import ResumeQuery
from millrace.core.request import Priority, QueuedRequest
from millrace.telemetry.metrics import SchedulerMetrics

from .dead_letters import DeadLetters
from .frames import FrameSender
from .gateway_links import GatewayLinks
from .ledger import Ledger, LedgerEntry
from .request_spans import RequestSpans
from .scheduler import Scheduler

_log = logging.getLogger(__name__)

FETCH_BATCH = 64
RETRY_S = 0.5
# The queue delivers a message again after `ACK_WAIT_S` without a word.
IN_PROGRESS_EVERY_S = 1.5
# The open fetch of a scheduler that has just frozen must be over when the first of its messages is
# delivered again: it would swallow that one, for another `ACK_WAIT_S`.
FETCH_TIMEOUT_S = ACK_WAIT_S - IN_PROGRESS_EVERY_S - 0.5
TICK_S = 0.25
MAX_REMEMBERED = 4_096

T = TypeVar("T")
Settlement = Callable[[], Coroutine[Any, Any, None]]


class Intake:
    """Holds every fetched message until its request is terminal and the gateway knows.

    `on_work` is called when the scheduler has something new to do.
    """

    def __init__(
        self,
        bus: Bus,
        scheduler: Scheduler,
        ledger: Ledger,
        links: GatewayLinks,
        frames: FrameSender,
        dead_letters: DeadLetters,
        *,
        max_held: int,
        gateway_grace_s: float,
        on_work: Callable[[], None],
        metrics: SchedulerMetrics,
    ) -> None:
        self._bus = bus
        self._scheduler = scheduler
        self._ledger = ledger
        self._links = links
        self._frames = frames
        self._dead_letters = dead_letters
        self._max_held = max_held
        self._gateway_grace_s = gateway_grace_s
        self._on_work = on_work
        self._metrics = metrics
        self._is_overloaded = False
        self._awaiting_resume: dict[str, LedgerEntry] = {}
        # The last requests that ended for want of their gateway, by id: its name.
        self._given_up: dict[str, str] = {}
        # The last aborts of requests that were not here; an abort may overtake its message.
        self._aborted_early: dict[str, CancelReason] = {}
        self._has_room = asyncio.Event()
        self._settling: set[asyncio.Task[None]] = set()

    async def run(self, model: str) -> None:
        """Until cancelled. Raises `ConfigError` where the consumers are missing."""
        queues = [await self._bus.work_queue(model, priority) for priority in Priority]
        async with asyncio.TaskGroup() as group:
            for queue in queues:
                group.create_task(self._fetch(queue))
            group.create_task(self._hear_aborts())
            group.create_task(self._keep_held())
            group.create_task(self._tick())

    async def give_back_all(self) -> None:
        """Has every held message delivered to somebody else: this scheduler ends."""
        for entry in self._ledger:
            entry.end(Unavailable.reason)
            self._settle(entry.request.request_id, entry.held.give_back)
        if self._settling:
            await asyncio.wait(self._settling, timeout=2.0)

    # The gateway's words ----------------------------------------------------------------------

    def gateway_attached(self, gateway_id: str) -> None:
        """Asks for what is open with a gateway that has just come."""
        waiting = [
            request_id
            for request_id, entry in self._awaiting_resume.items()
            if entry.request.gateway_id == gateway_id
        ]
        if waiting:
            self._links.send(gateway_id, ResumeQuery(tuple(waiting)))

    def registered(self, request_id: str) -> None:
        """The gateway has a client for a request, which may have been fetched already."""
        entry = self._awaiting_resume.get(request_id)
        if entry is not None and entry.held.num_delivered == 1:
            self.resumed(request_id, {})

    def resumed(self, request_id: str, cursors: Mapping[int, Sequence[int]]) -> None:
        """The gateway still wants a request and tells how far it has come."""
        entry = self._awaiting_resume.pop(request_id, None)
        if entry is not None:
            if entry.held.num_delivered > 1:
                self._metrics.resumed_requests.inc()
            entry.resume(cursors)
            self._admit(entry, cursors)
        elif (entry := self._ledger.get(request_id)) is not None:
            self._frames.resend(entry, cursors)
        elif (gateway_id := self._given_up.pop(request_id, None)) is not None:
            error = Unavailable("the gateway was away for too long: the request was ended")
            self._frames.refuse(gateway_id, request_id, error)

    def aborted(self, request_id: str, reason: CancelReason = CancelReason.CLIENT) -> None:
        """Nobody waits for a request any more; safe when late."""
        self._scheduler.abort(request_id)
        self._awaiting_resume.pop(request_id, None)
        if (entry := self._ledger.get(request_id)) is not None:
            self._count_abort(entry, reason)
            entry.end(Aborted.reason)
            self._let_go(entry, entry.held.acknowledge)
        else:
            _remember(self._aborted_early, request_id, reason)
        self._on_work()

    def confirmed(self, request_id: str) -> None:
        """The gateway has the last frame of a request: its message can go."""
        entry = self._ledger.get(request_id)
        if entry is None:
            return
        if entry.is_terminal:
            self._let_go(entry, entry.held.acknowledge)
        else:
            # It knows of one choice's end only: nobody takes the others.
            self.aborted(request_id, CancelReason.OTHER)

    # The queue --------------------------------------------------------------------------------

    async def _fetch(self, queue: WorkQueue) -> None:
        told = ""
        while True:
            room = self._max_held - len(self._ledger)
            if room <= 0:
                self._has_room.clear()
                await self._has_room.wait()
                continue
            try:
                batch = await queue.fetch(min(room, FETCH_BATCH), FETCH_TIMEOUT_S)
            except Unavailable as error:
                if error.message != told:
                    told = error.message
                    _log.warning("requests cannot be fetched, trying again: %s", error)
                await asyncio.sleep(RETRY_S)
                continue
            told = ""
            for held in batch:
                self._take(held)
            if self._is_overloaded:
                # Else everything on the queue would be fetched and given back, over and over.
                self._is_overloaded = False
                await asyncio.sleep(RETRY_S)

    def _take(self, held: HeldRequest) -> None:
        request = held.request
        if request is None:
            self._bury(held)
            return
        if held.num_delivered > 1:
            self._metrics.nats_redelivered.inc()
        if (known := self._ledger.get(request.request_id)) is not None:
            # Delivered again while it is held: only the newest delivery can be acknowledged.
            known.held = held
            return
        entry = self._hold(held, request)
        gateway_id, request_id = request.gateway_id, request.request_id
        if (reason := self._aborted_early.pop(request_id, None)) is not None:
            self.aborted(request_id, reason)
            return
        if held.num_delivered == 1 and self._links.is_wanted(gateway_id, request_id):
            self._admit(entry, {})
            return
        # Its registration is a moment late, or nobody wants it any more: the next tick asks.
        self._awaiting_resume[request_id] = entry
        if held.num_delivered > 1:
            self._links.send(gateway_id, ResumeQuery((request_id,)))

    def _bury(self, held: HeldRequest) -> None:
        """An unreadable message: nobody could ever run it."""
        letters = [] if held.dead_letter is None else [held.dead_letter]
        self._dead_letters.record(letters)
        self._settle("unreadable", held.discard)

    def _hold(self, held: HeldRequest, request: QueuedRequest) -> LedgerEntry:
        spans = RequestSpans.begin(
            request,
            self._frames.owner_epoch,
            num_delivered=held.num_delivered,
            published_unix_ns=held.published_unix_ns,
        )
        entry = LedgerEntry(held, replace(request, traceparent=spans.traceparent), spans)
        self._ledger.add(entry)
        return entry

    def _admit(self, entry: LedgerEntry, outputs: Mapping[int, Sequence[int]]) -> None:
        try:
            outcome = self._scheduler.add_request(entry.request, time.time_ns(), outputs=outputs)
        except Overloaded:
            # The window is full: the queue keeps it for a moment longer.
            self._is_overloaded = True
            entry.end(Overloaded.reason)
            self._let_go(entry, lambda: entry.held.give_back(RETRY_S))
        except MillraceError as error:
            self._frames.fail(entry, error)
        else:
            self._frames.send_outcome(outcome)
            self._on_work()

    async def _hear_aborts(self) -> None:
        async for request_id in self._bus.aborts():
            entry = self._ledger.get(request_id)
            if entry is not None and not entry.is_terminal:
                self._scheduler.abort(request_id)
                self._awaiting_resume.pop(request_id, None)
                self._count_abort(entry, CancelReason.ABORT)
                self._frames.fail(entry, Aborted("the request was aborted by id"))
                self._on_work()

    async def _keep_held(self) -> None:
        while True:
            await asyncio.sleep(IN_PROGRESS_EVERY_S)
            try:
                for entry in self._ledger:
                    await entry.held.in_progress()
            except Unavailable as error:
                _log.warning("held requests cannot be kept from running out: %s", error)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._expire(time.time_ns() // 1_000_000)
            self._drop_absent_gateways()
            self._ask_present_gateways()
            # A sequence may have been left for another worker, or held back for a prefix: what ends
            # such a wait is time, which is no event.
            self._on_work()

    def _expire(self, now_unix_ms: int) -> None:
        for request_id in self._scheduler.expire(now_unix_ms):
            if (entry := self._ledger.get(request_id)) is not None:
                self._count_abort(entry, CancelReason.DEADLINE)
                self._frames.fail(entry, DeadlineExceeded("the request's deadline has passed"))

    def _drop_absent_gateways(self) -> None:
        gateway_ids = self._ledger.gateway_ids()
        self._links.forget_all_but(gateway_ids)
        for gateway_id in gateway_ids:
            if self._links.absent_for_s(gateway_id) > self._gateway_grace_s:
                entries = self._ledger.of_gateway(gateway_id)
                told = {"gateway_id": gateway_id, "requests": len(entries)}
                _log.warning("a gateway is gone for good; its requests are ended", extra=told)
                for entry in entries:
                    self.aborted(entry.request.request_id, CancelReason.GATEWAY_GONE)
                    self._remember_given_up(entry.request)

    def _ask_present_gateways(self) -> None:
        """What became of requests that they have not named.

        A client may have left while its request lay in the queue, and a last word on a request may
        have been lost with the stream that it was said on.
        """
        held: dict[str, list[str]] = {}
        for entry in self._ledger:
            held.setdefault(entry.request.gateway_id, []).append(entry.request.request_id)
        for gateway_id, request_ids in held.items():
            self._links.ask(gateway_id, request_ids)

    def _count_abort(self, entry: LedgerEntry, reason: CancelReason) -> None:
        if not entry.is_terminal:
            self._metrics.request_aborted.labels(reason.value).inc()

    def _remember_given_up(self, request: QueuedRequest) -> None:
        """For a gateway that comes back after all: its client must not wait for nothing."""
        _remember(self._given_up, request.request_id, request.gateway_id)

    def _let_go(self, entry: LedgerEntry, settlement: Settlement) -> None:
        self._ledger.pop(entry.request.request_id)
        self._settle(entry.request.request_id, settlement)
        self._has_room.set()

    def _settle(self, request_id: str, settlement: Settlement) -> None:
        task = asyncio.create_task(_settle(request_id, settlement))
        self._settling.add(task)
        task.add_done_callback(self._settling.discard)


def _remember(memory: dict[str, T], request_id: str, what: T) -> None:
    memory[request_id] = what
    if len(memory) > MAX_REMEMBERED:
        del memory[next(iter(memory))]


async def _settle(request_id: str, settlement: Settlement) -> None:
    try:
        await settlement()
    except MillraceError as exc:
        # The queue delivers it again; the gateway then says that it is gone.
        _log.warning(
            "a message could not be settled, it will be delivered again: %s",
            exc,
            extra={"request_id": request_id},
        )
