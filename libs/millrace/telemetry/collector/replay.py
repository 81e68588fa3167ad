"""The last requests in the span store, once more, as a tracing UI takes them.

A span that the UI has already is left as it is, by its id; but Phoenix takes its time even for
that, so that what was replayed once is not sent again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from millrace.core.errors import RequestNotFound
from millrace.telemetry.names import ATTR_STACK_ID, SPAN_PROCESS
from millrace.telemetry.otlp_encode import export_request
from millrace.telemetry.span_record import SpanLink, SpanRecord
from millrace.telemetry.store import RequestTrace, TraceStore

from .ui_body import fit_for_ui

# Some seconds of the UI's work; a batch of many prompts is one request.
MAX_REQUESTS = 200
PER_BODY = 10


def replay_bodies(
    store: TraceStore, stack_id: str, after_seq: int = 0, max_requests: int = MAX_REQUESTS
) -> Iterator[tuple[int, bytes]]:
    """(number of requests, body of an export request), newest first, of those above `after_seq`.

    `stack_id` is that of the stack whose store it is.
    """
    traces = []
    for request in store.latest(max_requests):
        if request.seq <= after_seq:
            break
        try:
            traces.append(store.load(request))
        except RequestNotFound:
            continue  # evicted since
        if len(traces) == PER_BODY:
            yield len(traces), _body(traces, stack_id)
            traces = []
    if traces:
        yield len(traces), _body(traces, stack_id)


def _body(traces: Sequence[RequestTrace], stack_id: str) -> bytes:
    spans: dict[tuple[str, str], SpanRecord] = {}
    for trace in traces:
        for span in (*trace.spans, *_linked(trace)):
            spans.setdefault((span.trace_id, span.span_id), span)
    return fit_for_ui(export_request(spans.values(), {ATTR_STACK_ID: stack_id}))


def _linked(trace: RequestTrace) -> Iterator[SpanRecord]:
    """The steps with the link that the store keeps apart from them."""
    members = [span for span in trace.spans if span.name == SPAN_PROCESS]
    for step in trace.steps:
        held = [span for span in members if span.start_ns <= step.start_ns < span.end_ns]
        if held:
            yield replace(step, links=(SpanLink(held[0].trace_id, held[0].span_id),))
