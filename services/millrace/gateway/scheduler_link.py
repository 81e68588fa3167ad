"""The Attach stream to the active scheduler of one model: kept open, resumed after every break."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from millrace.core.errors import MillraceError, Unavailable
from millrace.core.membership import ResumeQuery, SchedulerOwner, SchedulerStatus
from millrace.core.tokens import TokenFrame

from .live_request import LiveRequest
from .ports import OpenStream, SchedulerStream

_log = logging.getLogger(__name__)

MIN_BACKOFF_S = 0.05
MAX_BACKOFF_S = 2.0
# The scheduler tells its status every second; a stream silent for so long is dead.
SILENCE_LIMIT_S = 5.0
REGISTER_TIMEOUT_S = 5.0

AttachEvent = TokenFrame | ResumeQuery | SchedulerStatus


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to tell the scheduler that nobody waits for."""

    kind: Literal["done", "gone", "abort", "resume"]
    live: LiveRequest | None
    request_id: str
    reason: str = ""


class SchedulerLink:
    """One model's stream. Notices given while it is down are dropped: the resume replaces them."""

    def __init__(
        self,
        model: str,
        open_stream: OpenStream,
        live_requests: Callable[[], Iterable[LiveRequest]],
        on_event: Callable[[AttachEvent], None],
        on_detached: Callable[[], None],
    ) -> None:
        self.model = model
        self._open_stream = open_stream
        self._live_requests = live_requests
        self._on_event = on_event
        self._on_detached = on_detached
        self._owner: SchedulerOwner | None = None
        self._changed = asyncio.Event()
        self._stream: SchedulerStream | None = None
        self._attached = asyncio.Event()
        self._outbox: asyncio.Queue[Notice] = asyncio.Queue()
        self._num_events = 0
        # How long the stream had been silent when it was given up; 0 if it broke by itself.
        self._silent_s = 0.0

    @property
    def is_attached(self) -> bool:
        """True while the stream is open."""
        return self._stream is not None

    def point_at(self, owner: SchedulerOwner | None) -> None:
        """Another owner, or none; lower epochs are refused.

        Where the owner's entry has gone the stream is kept for as long as it lives.
        """
        if owner is None:
            return
        if self._owner is not None and owner.owner_epoch < self._owner.owner_epoch:
            return
        if owner != self._owner:
            self._owner = owner
            self._changed.set()

    def tell(self, notice: Notice) -> bool:
        """Queues a notice; False where the stream is down."""
        if self._stream is None:
            return False
        self._outbox.put_nowait(notice)
        return True

    async def register(self, request_id: str) -> None:
        """Tells the scheduler to expect a request. Raises `Unavailable` where it stays away."""
        try:
            async with asyncio.timeout(REGISTER_TIMEOUT_S):
                await self._attached.wait()
                if self._stream is not None:
                    await self._stream.register(request_id)
        except TimeoutError as exc:
            raise Unavailable(
                f"the scheduler of {self.model} does not answer", retry_after_s=1.0
            ) from exc

    async def run(self) -> None:
        """Keeps the stream open until cancelled."""
        delay_s = MIN_BACKOFF_S
        while True:
            if self._owner is None:
                await self._changed.wait()
            self._changed.clear()
            owner, self._num_events = self._owner, 0
            if owner is not None:
                await self._serve_until_changed(owner)
            if self._num_events:
                delay_s = MIN_BACKOFF_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s * random.uniform(0.5, 1.0)):
                    await self._changed.wait()
            delay_s = min(2 * delay_s, MAX_BACKOFF_S)

    async def _serve_until_changed(self, owner: SchedulerOwner) -> None:
        serving = asyncio.create_task(self._serve(owner))
        changed = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait((serving, changed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            serving.cancel()
            changed.cancel()
            (outcome, _) = await asyncio.gather(serving, changed, return_exceptions=True)
            if self._stream is not None:
                self._tell_lost()
            self._stream = None
            self._attached.clear()
            self._on_detached()
        if isinstance(outcome, MillraceError):
            # Once per break: the tries that follow are many and say the same.
            level = logging.WARNING if self._num_events else logging.DEBUG
            address = owner.advertise_address
            told = {"model": self.model, "address": address}
            _log.log(level, "the stream to the scheduler broke: %s", outcome, extra=told)
        elif isinstance(outcome, Exception):
            _log.error("the stream to the scheduler failed", exc_info=outcome)

    async def _serve(self, owner: SchedulerOwner) -> None:
        stream = await self._open_stream(owner.advertise_address)
        writer: asyncio.Task[None] | None = None
        try:
            self._outbox = asyncio.Queue()
            for live in self._open_requests():
                await stream.resume(live.request_id, live.cursors())
                if live.on_link_back is not None:
                    live.on_link_back(owner.owner_epoch)
            self._stream = stream
            self._attached.set()
            writer = asyncio.create_task(self._write(stream, self._outbox))
            await self._read(stream)
        finally:
            if writer is not None:
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)
            await stream.close()

    def _open_requests(self) -> list[LiveRequest]:
        """Those that the scheduler knows of and that are not over."""
        lives = self._live_requests()
        return [live for live in lives if live.is_registered and not live.is_over]

    def _tell_lost(self) -> None:
        for live in self._open_requests():
            if live.on_link_lost is not None:
                live.on_link_lost(self._silent_s)

    async def _read(self, stream: SchedulerStream) -> None:
        self._silent_s = 0.0
        events = aiter(stream.events())
        while True:
            try:
                async with asyncio.timeout(SILENCE_LIMIT_S):
                    event = await anext(events, None)
            except TimeoutError as exc:
                self._silent_s = SILENCE_LIMIT_S
                raise Unavailable(f"no word for {SILENCE_LIMIT_S:g} s") from exc
            if event is None:
                raise Unavailable("the scheduler ended the stream")
            self._num_events += 1
            self._on_event(event)

    async def _write(self, stream: SchedulerStream, outbox: asyncio.Queue[Notice]) -> None:
        while True:
            notice = await outbox.get()
            try:
                await self._send(stream, notice)
            except MillraceError as error:
                told = {"request_id": notice.request_id, "what": notice.kind}
                _log.info("the scheduler could not be told: %s", error, extra=told)
                return

    def _send(self, stream: SchedulerStream, notice: Notice) -> Awaitable[None]:
        if notice.kind == "done":
            return stream.done(notice.request_id)
        if notice.kind == "gone":
            return stream.gone(notice.request_id)
        if notice.kind == "resume" and notice.live is not None:
            return stream.resume(notice.request_id, notice.live.cursors())
        return stream.abort(notice.request_id, notice.reason)
