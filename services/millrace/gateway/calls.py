"""One call at an edge: its id, its arrival and its root span."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import Callable, Mapping

from opentelemetry import trace
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
)

from millrace.core.errors import MillraceError
from millrace.core.request_fields.ignored import IGNORED_HEADER
from millrace.telemetry.names import (
    ATTR_ERROR_REASON,
    ATTR_ERROR_TYPE,
    ATTR_OPERATION_NAME,
    ATTR_PROVIDER_NAME,
    ATTR_REQUEST_ID,
)
from millrace.telemetry.propagation import extract, traceparent_of

from .call_facts import current_facts
from .told_error import told_message

# Made once: making one costs as much as a span. It finds the process's provider by itself.
_tracer = trace.get_tracer(__name__)

PROVIDER_NAME = "millrace"
REQUEST_ID_HEADER = "x-request-id"
TRACE_HEADER = "traceresponse"


class Call:
    """Made by the edge on arrival, ended by it when the reply is out.

    `arrival_ns` is on the monotonic clock. A call without an operation generates nothing: its span
    is kept only if it fails. `ignored` names fields that are not taken into account. A call of many
    requests has a part for each, whose `whole` it is; one that `is_aborted` opens no further one.
    `accepted` is set once the request, or one of its parts, is on the queue: from then on an engine
    works for it.
    """

    def __init__(
        self, span: Span, operation: str = "", accepted: asyncio.Event | None = None
    ) -> None:
        self.request_id = uuid.uuid4().hex
        self.operation = operation
        self.span = span
        self.accepted = accepted or asyncio.Event()
        self.arrival_unix_ns = time.time_ns()
        self.arrival_ns = time.monotonic_ns()
        self.error: MillraceError | None = None
        self.facts = current_facts()
        self.facts.call = self.facts.call or self
        self.ignored = ""
        self.whole: Call | None = None
        self.parts: list[Call] = []
        self.is_aborted = False
        self._is_ended = False
        self._when_ended: Callable[[], None] | None = None
        if span.is_recording():
            span.set_attribute(ATTR_REQUEST_ID, self.request_id)

    @property
    def headers(self) -> tuple[tuple[str, str], ...]:
        """What every reply and every error carries, as headers or as metadata."""
        headers = (
            (REQUEST_ID_HEADER, self.request_id),
            (TRACE_HEADER, traceparent_of(self.span)),
        )
        return (*headers, (IGNORED_HEADER, self.ignored)) if self.ignored else headers

    @property
    def elapsed_ns(self) -> int:
        """Since arrival."""
        return time.monotonic_ns() - self.arrival_ns

    def part(self) -> Call:
        """A request inside this call (one prompt of many), with a span of its own."""
        span = _tracer.start_span(
            self.operation,
            context=trace.set_span_in_context(self.span),
            attributes=_attributes(self.operation),
        )
        part = Call(span, self.operation, self.accepted)
        part.whole = self
        self.parts.append(part)
        return part

    def end(self, error: MillraceError | None = None) -> None:
        """Ends the span, with `error` or the one noted in `self.error`; safe to repeat."""
        if self._is_ended:
            return
        self._is_ended = True
        self.error = error or self.error
        if self.span.is_recording():
            self._set_status()
        if self.operation or self.error is not None:
            self.span.end()
        if self._when_ended is not None:
            self._when_ended()

    def when_ended(self, action: Callable[[], None]) -> None:
        """Runs `action` at the end; at once if that has been, or if nobody else ends the call."""
        if not self.operation:
            self.end()
        self._when_ended = action
        if self._is_ended:
            action()

    def _set_status(self) -> None:
        error = self.error
        if error is None:
            self.span.set_status(StatusCode.OK)
            return
        self.span.set_attribute(ATTR_ERROR_TYPE, type(error).__name__)
        self.span.set_attribute(ATTR_ERROR_REASON, error.reason)
        self.span.set_status(Status(StatusCode.ERROR, told_message(error)))


def begin_call(operation: str, carrier: Mapping[str, str]) -> Call:
    """A call that generates: its root span, below the caller's where `carrier` names one."""
    span = _tracer.start_span(
        operation,
        context=extract(carrier),
        kind=SpanKind.SERVER,
        attributes=_attributes(operation),
    )
    if not span.get_span_context().is_valid:
        span = _unrecorded(carrier)
    return Call(span, operation)


def begin_untraced_call(carrier: Mapping[str, str]) -> Call:
    """A call that no trace is kept of unless it fails; the reply names a trace id all the same."""
    facts = current_facts()
    if facts.is_probe:
        return Call(_unrecorded(carrier))
    span = _tracer.start_span(facts.name, context=extract(carrier), kind=SpanKind.SERVER)
    return Call(span if span.get_span_context().is_valid else _unrecorded(carrier))


def _attributes(operation: str) -> dict[str, str]:
    return {ATTR_OPERATION_NAME: operation, ATTR_PROVIDER_NAME: PROVIDER_NAME}


def _unrecorded(carrier: Mapping[str, str]) -> Span:
    parent = trace.get_current_span(extract(carrier)).get_span_context()
    context = SpanContext(
        trace_id=parent.trace_id if parent.is_valid else secrets.randbits(128) or 1,
        span_id=secrets.randbits(64) or 1,
        is_remote=False,
        trace_flags=TraceFlags(0),
    )
    return NonRecordingSpan(context)
