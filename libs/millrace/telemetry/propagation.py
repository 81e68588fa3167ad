"""W3C trace context: from a span to its header text and back.

Source: https://www.w3.org/TR/trace-context/. Written out because every message and every admission
carries one: about 1 µs each way. A header that is malformed or all zero is ignored, as the
recommendation asks: the receiver then begins a new trace.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, TraceFlags, TraceState

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
MAX_TRACESTATE_CHARS = 512
# Sampled, and random-trace-id of level 2 of the recommendation.
KNOWN_FLAGS = 0x03

# Versions above 00 may add fields after another dash; ff is not a version.
_PATTERN = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def traceparent_of(span: Span | None = None) -> str:
    """Header text of `span`, or of the current one; empty where there is none."""
    context = (trace.get_current_span() if span is None else span).get_span_context()
    if not context.is_valid:
        return ""
    flags = int(context.trace_flags) & 0xFF
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"


def context_from_traceparent(traceparent: str) -> Context:
    """Context whose parent is the one named; an empty context where the text names none."""
    return _context(_parse(traceparent, None))


def span_context_from_traceparent(traceparent: str) -> SpanContext | None:
    """What a span link needs; None where the text names no span."""
    return _parse(traceparent, None)


def inject(carrier: dict[str, str]) -> None:
    """Write the current span's context into headers; nothing without one."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return
    carrier[TRACEPARENT] = traceparent_of()
    if context.trace_state:
        carrier[TRACESTATE] = context.trace_state.to_header()


def extract(carrier: Mapping[str, str]) -> Context:
    """Context from headers with lower-case names; empty where they name no parent."""
    return _context(_parse(carrier.get(TRACEPARENT, ""), carrier.get(TRACESTATE)))


def _context(parent: SpanContext | None) -> Context:
    if parent is None:
        return Context()
    return trace.set_span_in_context(NonRecordingSpan(parent), Context())


def _parse(traceparent: str, tracestate: str | None) -> SpanContext | None:
    match = _PATTERN.fullmatch(traceparent.strip())
    if match is None or (match[1] == "00" and match[5]):
        return None
    state = None
    if tracestate and len(tracestate) <= MAX_TRACESTATE_CHARS:
        state = TraceState.from_header([tracestate])
    context = SpanContext(
        trace_id=int(match[2], 16),
        span_id=int(match[3], 16),
        is_remote=True,
        trace_flags=TraceFlags(int(match[4], 16) & KNOWN_FLAGS),
        trace_state=state,
    )
    return context if context.is_valid else None
