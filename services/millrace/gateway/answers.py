"""An accepted request, read as events by one edge."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from millrace.core.answer import CachedAnswer
from millrace.core.cancellation import CancelReason
from millrace.core.errors import Aborted, MillraceError

from .calls import Call
from .events import Delta, Event, Finished, PositionLogprobs, Started, Timings, Usage
from .live_request import LiveRequest
from .record import RequestRecord
from .response_cache import answer_of, events_of


class Answer(Protocol):
    """Started, any number of events, Finished; or an error in between.

    `abandon` must be called when reading stops, at the latest after the last event. `on_cut` is
    called when the reader has fallen too far behind; what it holds is freed by then.
    """

    started: Started
    on_cut: Callable[[], None] | None

    def __aiter__(self) -> AsyncIterator[Event]:
        """The events; read once."""

    def abandon(self, reason: CancelReason = CancelReason.CLIENT) -> None:
        """Frees what the request still holds; nothing to do after the end."""


class StoredAnswer:
    """An answer from the response cache."""

    def __init__(
        self, started: Started, answer: CachedAnswer, call: Call, record: RequestRecord
    ) -> None:
        self.started = started
        self.on_cut: Callable[[], None] | None = None
        self._events = self._replay(answer, call)
        self._record = record

    async def __aiter__(self) -> AsyncIterator[Event]:
        """The events."""
        for event in self._events:
            if isinstance(event, Finished):
                self._record.finish(event)
            yield event

    def abandon(self, reason: CancelReason = CancelReason.CLIENT) -> None:
        """Nothing is held but the record."""
        self._record.fail(Aborted("the client went away"))

    def _replay(self, answer: CachedAnswer, call: Call) -> Iterator[Event]:
        yield self.started
        yield from events_of(answer, time.monotonic_ns() - call.arrival_ns)


class LiveAnswer:
    """An answer in the making. `settle` is the router's; `store` takes it for the cache."""

    def __init__(
        self,
        started: Started,
        live: LiveRequest,
        call: Call,
        record: RequestRecord,
        settle: Callable[[LiveRequest, CancelReason | None], None],
        store: Callable[[CachedAnswer], None] | None = None,
    ) -> None:
        self.started = started
        self.on_cut: Callable[[], None] | None = None
        self._live = live
        self._call = call
        self._record = record
        self._settle = settle
        self._store = store
        self._texts: list[list[str]] = [[] for _ in live.choices]
        self._is_started = False
        self._is_over = False
        self._free_on_cut = live.on_cut
        live.on_cut = self._cut

    def __aiter__(self) -> LiveAnswer:
        """Itself."""
        return self

    async def __anext__(self) -> Event:
        """The next event."""
        if not self._is_started:
            self._is_started = True
            return self.started
        if self._is_over:
            raise StopAsyncIteration
        try:
            event = await self._live.next_event()
        except MillraceError as error:
            self._fail(error)
            raise
        if event is None:
            return self._finish()
        if self._store is not None and isinstance(event, Delta):
            self._texts[event.choice].append(event.text)
        return event

    def abandon(self, reason: CancelReason = CancelReason.CLIENT) -> None:
        """Ends the request where it is."""
        if not self._is_over:
            self._settle(self._live, reason)
            error = Aborted("the client went away")
            self._live.fail(error)
            self._fail(error)

    def _cut(self) -> None:
        if self._free_on_cut is not None:
            self._free_on_cut()
        if self.on_cut is not None:
            self.on_cut()

    def _fail(self, error: MillraceError) -> None:
        self._is_over = True
        self._record.fail(error, self._live)

    def _finish(self) -> Finished:
        live = self._live
        self._is_over = True
        choices = tuple(live.end_of(choice) for choice in live.choices)
        num_output_tokens = sum(choice.num_output_tokens for choice in choices)
        finished = Finished(
            choices,
            Usage(self.started.num_prompt_tokens, num_output_tokens, live.num_cached_tokens),
            self._timings(),
            is_cached=False,
        )
        if self._store is not None:
            texts = ["".join(parts) for parts in self._texts]
            ids = [choice.token_ids[: choice.num_emitted] for choice in live.choices]
            answer = answer_of(choices, texts, ids, self.started.num_prompt_tokens)
            if answer is not None:
                self._store(answer)
        self._record.finish(finished, live)
        return finished

    def _timings(self) -> Timings:
        live, call = self._live, self._call
        scheduled, first = live.scheduled_unix_ns, live.first_token_ns
        return Timings(
            queue_ns=max(0, scheduled - call.arrival_unix_ns) if scheduled else 0,
            time_to_first_token_ns=first - call.arrival_ns if first else 0,
            total_ns=time.monotonic_ns() - call.arrival_ns,
        )


@dataclass(slots=True)
class WholeAnswer:
    """An answer read to its end; lists have one entry per choice."""

    started: Started
    finished: Finished
    texts: list[str]
    token_ids: list[list[int]]
    logprobs: list[list[PositionLogprobs]]


async def read_whole(answer: Answer, num_choices: int) -> WholeAnswer:
    """Reads an answer to its end; raises the error it ended with."""
    texts: list[list[str]] = [[] for _ in range(num_choices)]
    token_ids: list[list[int]] = [[] for _ in range(num_choices)]
    logprobs: list[list[PositionLogprobs]] = [[] for _ in range(num_choices)]
    finished: Finished | None = None
    try:
        async for event in answer:
            if isinstance(event, Delta):
                texts[event.choice].append(event.text)
                token_ids[event.choice].extend(event.token_ids)
                logprobs[event.choice].extend(event.logprobs)
            elif isinstance(event, Finished):
                finished = event
    finally:
        answer.abandon()
    if finished is None:
        raise Aborted("the answer ended early")
    return WholeAnswer(
        answer.started, finished, ["".join(parts) for parts in texts], token_ids, logprobs
    )
