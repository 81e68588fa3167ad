"""A request between acceptance and its end: its choices, and the bounded way to its client."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence

from millrace.core.cancellation import CancelReason
from millrace.core.errors import Aborted, MillraceError
from millrace.core.tokens import FinishReason

from .choice_output import ChoiceOutput
from .events import ChoiceFinished, Delta, Event


class LiveRequest:
    """Filled by the frame loop, which never waits here, and emptied by one reader.

    A reader that leaves `max_buffered_events` unread is cut: `on_cut` is called, what lies in the
    buffer may still be read, then `Aborted` is raised.
    """

    def __init__(
        self,
        request_id: str,
        model: str,
        choices: Sequence[ChoiceOutput],
        *,
        max_buffered_events: int = 1024,
    ) -> None:
        self.request_id = request_id
        self.model = model
        self.choices = list(choices)
        self.on_cut: Callable[[], None] | None = None
        self.on_closed: Callable[[], None] | None = None
        self.on_first_token: Callable[[], None] | None = None
        self.on_cancelled: Callable[[CancelReason], None] | None = None
        self.on_gap: Callable[[float, int], None] | None = None
        self.on_link_lost: Callable[[float], None] | None = None
        self.on_link_back: Callable[[int], None] | None = None
        self.is_registered = False
        self.num_gaps = 0
        self.gap_at: tuple[int, int] | None = None
        self.num_cached_tokens = 0
        self.scheduled_unix_ns = 0
        self.first_token_ns = 0
        self.last_token_ns = 0
        self.detokenize_start_unix_ns = 0
        self.detokenize_end_unix_ns = 0
        self.detokenize_busy_ns = 0
        self.num_detokenize_calls = 0
        self.client_blocked_ns = 0
        self._max_buffered_events = max_buffered_events
        self._events: deque[Event] = deque()
        self._num_ends = 0
        self._is_closed = False
        self._error: MillraceError | None = None
        self._wake: asyncio.Future[None] | None = None
        self._unread_since_ns = 0

    @property
    def is_over(self) -> bool:
        """True where no further event will be taken."""
        return self._is_closed

    @property
    def has_failed(self) -> bool:
        """True where it ended with an error."""
        return self._error is not None

    @property
    def is_settled(self) -> bool:
        """True where the scheduler has ended every choice."""
        return all(choice.is_settled for choice in self.choices)

    def cursors(self) -> dict[int, list[int]]:
        """Tokens accepted so far, by choice: what a resume tells."""
        return {choice.index: choice.token_ids for choice in self.choices}

    def push_delta(self, delta: Delta) -> None:
        """New text or tokens for the client."""
        if delta.token_ids:
            self._mark_tokens(len(delta.token_ids))
        if delta.text or delta.token_ids:
            self._push(delta)

    def push_end(self, choice: ChoiceOutput) -> None:
        """The end of a choice; the last one closes the request."""
        self._push(self.end_of(choice))
        self._num_ends += 1
        if self._num_ends == len(self.choices):
            self._close()

    def end_of(self, choice: ChoiceOutput) -> ChoiceFinished:
        """How a choice ended, as the client is told."""
        return ChoiceFinished(choice.index, choice.ended, choice.matched_stop, choice.num_emitted)

    def abort(self) -> None:
        """Ends every choice that still goes on with ABORT."""
        for choice in self.choices:
            if not choice.is_ended and not self._is_closed:
                choice.abort()
                self.push_end(choice)

    def fail(self, error: MillraceError) -> None:
        """The reader gets what is there, then `error`; the first error counts."""
        if self._is_closed:
            return
        for choice in self.choices:
            if not choice.is_ended:
                choice.ended = FinishReason.ERROR
        self._error = error
        self._close()

    async def next_event(self) -> Event | None:
        """The next event, None after the last one; raises the error that ended the request."""
        while not self._events:
            if self._error is not None:
                raise self._error
            if self._is_closed:
                return None
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        event = self._events.popleft()
        if not self._events:
            self.client_blocked_ns += time.monotonic_ns() - self._unread_since_ns
        return event

    def _push(self, event: Event) -> None:
        if self._is_closed:
            return
        if len(self._events) >= self._max_buffered_events:
            self.fail(
                Aborted(
                    f"the client reads too slowly: {len(self._events)} events wait for it, "
                    f"the limit is {self._max_buffered_events}"
                )
            )
            if self.on_cut is not None:
                self.on_cut()
            return
        if not self._events:
            self._unread_since_ns = time.monotonic_ns()
        self._events.append(event)
        self._rouse()

    def _close(self) -> None:
        self._is_closed = True
        if self.on_closed is not None:
            self.on_closed()
        self._rouse()

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _mark_tokens(self, num_tokens: int) -> None:
        now_ns = time.monotonic_ns()
        if not self.first_token_ns:
            self.first_token_ns = now_ns
            if self.on_first_token is not None:
                self.on_first_token()
        elif self.on_gap is not None:
            self.on_gap((now_ns - self.last_token_ns) / 1e9, num_tokens)
        self.last_token_ns = now_ns
