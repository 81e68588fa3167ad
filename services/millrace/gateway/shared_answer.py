"""One answer read by several callers, each from its start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from millrace.core.cancellation import CancelReason
from millrace.core.errors import Aborted, MillraceError

from .answers import Answer
from .events import Event, Finished, Started
from .record import RequestRecord


class SharedAnswer:
    """Reads an answer to its end in a task of its own and keeps every event.

    The request goes on while anybody reads it; the last reader to leave ends it. `on_over` is
    called once, with the error that ended it or None.
    """

    def __init__(
        self,
        answer: Answer,
        on_over: Callable[[SharedAnswer, MillraceError | None], None],
        *,
        max_buffered_events: int,
    ) -> None:
        self.started = answer.started
        self.events: list[Event] = []
        self.is_over = False
        self._answer = answer
        self._on_over = on_over
        self._max_buffered_events = max_buffered_events
        self._error: MillraceError | None = None
        self._readers: set[SharedReader] = set()
        self.task = asyncio.create_task(self._read())

    def attach(self, record: RequestRecord | None = None) -> SharedReader:
        """A reader that starts at the first event; `record` hears how it ends."""
        limit = len(self.events) + self._max_buffered_events
        reader = SharedReader(self, limit, record)
        self._readers.add(reader)
        return reader

    def detach(self, reader: SharedReader, reason: CancelReason) -> None:
        """The reader has gone; safe to repeat."""
        self._readers.discard(reader)
        if not self._readers and not self.is_over:
            # From now on nobody may attach, although the task has not seen the end yet.
            self.is_over = True
            self._answer.abandon(reason)

    def event_at(self, index: int) -> Event | None:
        """None where there is none yet, or none any more; raises the error that ended it."""
        if index < len(self.events):
            return self.events[index]
        if self._error is not None:
            raise self._error
        return None

    async def _read(self) -> None:
        error: MillraceError | None = None
        try:
            async for event in self._answer:
                self.events.append(event)
                self._rouse()
        except MillraceError as raised:
            error = raised
        except asyncio.CancelledError:
            error = Aborted("the gateway ended")
            raise
        finally:
            self._answer.abandon()
            self._error = error
            self.is_over = True
            self._on_over(self, error)
            self._rouse()

    def _rouse(self) -> None:
        for reader in list(self._readers):
            reader.on_event(len(self.events))


class SharedReader:
    """One caller's view of a shared answer; an `Answer`. `limit` bounds what it leaves unread."""

    def __init__(self, shared: SharedAnswer, limit: int, record: RequestRecord | None) -> None:
        self.started: Started = shared.started
        self.on_cut: Callable[[], None] | None = None
        self.on_left: Callable[[], object] | None = None
        self._shared = shared
        self._limit = limit
        self._record = record
        self._position = 0
        self._error: MillraceError | None = None
        self._wake = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._is_left = False

    def expire_in(self, delay_s: float, error: MillraceError) -> None:
        """After `delay_s` this reader, and it alone, ends with `error`."""
        self._timer = asyncio.get_running_loop().call_later(delay_s, self.fail, error)

    def on_event(self, num_events: int) -> None:
        """There is more to read, or the end has come."""
        if num_events - self._position > self._limit:
            self.fail(
                Aborted(
                    f"the client reads too slowly: {num_events - self._position} events wait for "
                    f"it, the limit is {self._limit}"
                )
            )
            if self.on_cut is not None:
                self.on_cut()
        self._wake.set()

    def __aiter__(self) -> SharedReader:
        """Itself."""
        return self

    async def __anext__(self) -> Event:
        """The next event."""
        while True:
            if self._error is not None:
                raise self._error
            event = self._next()
            if event is not None:
                self._position += 1
                return event
            if self._shared.is_over or self._is_left:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()

    def abandon(self, reason: CancelReason = CancelReason.CLIENT) -> None:
        """Leaves; the request goes on where others read it."""
        self._leave(Aborted("the client went away"), reason)

    def _next(self) -> Event | None:
        try:
            event = self._shared.event_at(self._position)
        except MillraceError as error:
            self._leave(error)
            raise
        if isinstance(event, Finished) and self._record is not None:
            # Marked, so that it does not count as time per token.
            self._record.finish(replace(event, is_cached=True))
        return event

    def fail(self, error: MillraceError) -> None:
        """Ends this reader, and it alone; the first error counts."""
        if self._error is None:
            self._error = error
            self._leave(error)

    def _leave(self, error: MillraceError, reason: CancelReason = CancelReason.CLIENT) -> None:
        if self._is_left:
            return
        self._is_left = True
        if self._timer is not None:
            self._timer.cancel()
        if self._record is not None:
            self._record.fail(error)
        if self.on_left is not None:
            self.on_left()
        self._wake.set()
        self._shared.detach(self, reason)
