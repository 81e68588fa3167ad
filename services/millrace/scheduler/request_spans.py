"""Spans of the scheduler: `process` and `queue_wait` per request, sampled `step` per batch."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

from millrace.bus.subjects import REQUEST_TEMPLATE
from millrace.core.loss import Loss
from millrace.core.request import QueuedRequest
from millrace.core.step import StepResult
from millrace.core.tokens import Scheduled
from millrace.telemetry.names import (
    ATTR_ATTEMPT,
    ATTR_BATCH_KIND,
    ATTR_BATCH_KV_BLOCKS_USED,
    ATTR_BATCH_NUM_TOKENS,
    ATTR_BATCH_SIZE,
    ATTR_CHOICE,
    ATTR_ERROR_REASON,
    ATTR_FORWARD_S,
    ATTR_LOSS_REASON,
    ATTR_MESSAGING_DELIVERY_COUNT,
    ATTR_MESSAGING_DESTINATION_TEMPLATE,
    ATTR_MESSAGING_OPERATION_NAME,
    ATTR_MESSAGING_SYSTEM,
    ATTR_NUM_CACHED_TOKENS,
    ATTR_NUM_PREEMPTIONS,
    ATTR_PRIORITY,
    ATTR_REQUEST_ID,
    ATTR_SAMPLE_S,
    ATTR_SILENT_S,
    ATTR_STEP_ID,
    ATTR_STEP_S,
    ATTR_WORKER_ID,
    EVENT_ADMITTED,
    EVENT_FINISHED,
    EVENT_FIRST_TOKEN,
    EVENT_PREEMPTED,
    EVENT_RESUMED,
    MESSAGING_SYSTEM_NATS,
    SPAN_PROCESS,
    SPAN_QUEUE_WAIT,
    SPAN_STEP,
)
from millrace.telemetry.propagation import context_from_traceparent, traceparent_of

from .outcome import StepOutcome

# Made once: making one costs as much as a span. It finds the process's provider by itself.
_tracer = trace.get_tracer(__name__)

NS_PER_S = 1e9


@dataclass(slots=True)
class RequestSpans:
    """The spans of one request while the scheduler holds it."""

    process: Span
    started_unix_ns: int
    admitted_unix_ns: int = 0
    has_queue_wait: bool = False
    num_preemptions: int = 0
    is_answering: bool = False
    # Choices that have lost their row and given no token since, and why.
    interrupted: dict[int, Loss] = field(default_factory=dict)
    # Those of a failed step, until the worker has given their rows back.
    coming_back: set[int] = field(default_factory=set)

    @classmethod
    def begin(
        cls,
        request: QueuedRequest,
        owner_epoch: int,
        *,
        num_delivered: int,
        published_unix_ns: int,
    ) -> RequestSpans:
        """From the message's trace context; the time on the queue is part of `queue_wait`.

        A message that is delivered again was in other hands in between: it is told from now on.
        """
        started_unix_ns = published_unix_ns if num_delivered == 1 else time.time_ns()
        process = _tracer.start_span(
            SPAN_PROCESS,
            context=context_from_traceparent(request.traceparent),
            kind=SpanKind.CONSUMER,
            start_time=started_unix_ns,
            attributes={
                ATTR_MESSAGING_SYSTEM: MESSAGING_SYSTEM_NATS,
                ATTR_MESSAGING_OPERATION_NAME: "process",
                ATTR_MESSAGING_DESTINATION_TEMPLATE: REQUEST_TEMPLATE,
                ATTR_MESSAGING_DELIVERY_COUNT: num_delivered,
                ATTR_REQUEST_ID: request.request_id,
                ATTR_PRIORITY: request.priority.subject_token,
                ATTR_ATTEMPT: owner_epoch,
            },
        )
        return cls(process, started_unix_ns)

    @property
    def traceparent(self) -> str:
        """What admissions carry to the worker."""
        return traceparent_of(self.process)

    def admitted(self, scheduled: Scheduled) -> None:
        """The request has had its first row since a step ago: its result brings the news."""
        self.admitted_unix_ns = scheduled.scheduled_unix_ns
        attributes = {ATTR_NUM_CACHED_TOKENS: scheduled.num_cached_tokens}
        self.process.add_event(EVENT_ADMITTED, attributes, self.admitted_unix_ns)

    def draw_queue_wait(self) -> None:
        """Draws `queue_wait`, up to now where there was no admission; safe to repeat.

        A span of its own costs time that the request's tokens need not wait for.
        """
        if self.has_queue_wait:
            return
        self.has_queue_wait = True
        queue_wait = _tracer.start_span(
            SPAN_QUEUE_WAIT,
            context=trace.set_span_in_context(self.process),
            start_time=self.started_unix_ns,
        )
        queue_wait.end(self.admitted_unix_ns or time.time_ns())

    def token_arrived(self, choice: int, worker_id: str) -> None:
        """A choice has given a token: the first one, or one after its row was lost, is told."""
        if not self.is_answering:
            self.is_answering = True
            self.process.add_event(EVENT_FIRST_TOKEN)
        if choice in self.interrupted:
            loss = self.interrupted.pop(choice)
            self.process.add_event(EVENT_RESUMED, _event(choice, loss, worker_id))

    def row_came_back(self, choice: int, worker_id: str) -> None:
        """The worker has given a choice's row back: for want of blocks, unless its step failed."""
        if choice in self.coming_back:
            self.coming_back.remove(choice)
            return
        self.num_preemptions += 1
        self.row_lost(choice, Loss.BLOCKS, worker_id)

    def row_lost(self, choice: int, loss: Loss, worker_id: str, silent_s: float = 0.0) -> None:
        """A choice has no row any more; for `silent_s` before, nothing was heard of it."""
        self.interrupted[choice] = loss
        if loss in (Loss.STEP_FAILED, Loss.OUT_OF_MEMORY):
            self.coming_back.add(choice)
        else:
            self.coming_back.discard(choice)
        attributes = _event(choice, loss, worker_id)
        if silent_s:
            attributes[ATTR_SILENT_S] = silent_s
        self.process.add_event(EVENT_PREEMPTED, attributes)

    def taken_over(self, choices: Iterable[int]) -> None:
        """Another scheduler has given tokens of these choices, and is gone."""
        self.interrupted.update((choice, Loss.SCHEDULER_LOST) for choice in choices)

    def end(self, error_reason: str = "") -> None:
        """The request is terminal."""
        self.draw_queue_wait()
        if self.num_preemptions:
            self.process.set_attribute(ATTR_NUM_PREEMPTIONS, self.num_preemptions)
        if error_reason:
            self.process.set_attribute(ATTR_ERROR_REASON, error_reason)
            self.process.set_status(Status(StatusCode.ERROR, error_reason))
        else:
            self.process.add_event(EVENT_FINISHED)
        self.process.end()


class StepSpans:
    """One span for every step that took a request in, and for one in `every` of the others."""

    def __init__(self, every: int) -> None:
        self._every = max(1, every)
        self._num_steps = 0

    def is_due(self, outcome: StepOutcome) -> bool:
        """Counts a step; True where it is to be recorded."""
        self._num_steps += 1
        return bool(outcome.scheduled) or self._num_steps % self._every == 0

    def record(
        self, worker_id: str, result: StepResult, members: Iterable[Span], num_used_blocks: int
    ) -> None:
        """Draws the step as it was, with a link to the `process` span of every member."""
        links = [Link(span.get_span_context()) for span in members]
        num_prefill_tokens = result.num_tokens - result.num_decode_rows
        span = _tracer.start_span(
            SPAN_STEP,
            context=Context(),
            links=links,
            start_time=result.started_unix_ns,
            attributes={
                ATTR_WORKER_ID: worker_id,
                ATTR_STEP_ID: result.step_id,
                ATTR_BATCH_SIZE: len(links),
                ATTR_BATCH_NUM_TOKENS: result.num_tokens,
                ATTR_BATCH_KIND: _kind(num_prefill_tokens, result.num_decode_rows),
                ATTR_BATCH_KV_BLOCKS_USED: num_used_blocks,
                ATTR_STEP_S: result.step_ns / NS_PER_S,
                ATTR_FORWARD_S: result.forward_ns / NS_PER_S,
                ATTR_SAMPLE_S: result.sample_ns / NS_PER_S,
            },
        )
        span.end(result.started_unix_ns + result.step_ns)


def _event(choice: int, loss: Loss, worker_id: str) -> dict[str, str | int | float]:
    return {ATTR_CHOICE: choice, ATTR_LOSS_REASON: loss.value, ATTR_WORKER_ID: worker_id}


def _kind(num_prefill_tokens: int, num_decode_rows: int) -> str:
    if num_prefill_tokens and num_decode_rows:
        return "mixed"
    return "prefill" if num_prefill_tokens else "decode"
