"""One request is one trace, across scheduler and worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
from opentelemetry import trace

from millrace.telemetry.names import (
    ATTR_ERROR_REASON,
    ATTR_NUM_PREEMPTIONS,
    EVENT_ADMITTED,
    EVENT_FINISHED,
    EVENT_FIRST_TOKEN,
    EVENT_PREEMPTED,
    EVENT_RESUMED,
    SERVICE_EDGES,
    SERVICE_SCHEDULER,
    SERVICE_WORKER,
    SPAN_DECODE,
    SPAN_PREFILL,
    SPAN_PROCESS,
    SPAN_QUEUE_WAIT,
    SPAN_STEP,
    STEP_EDGES,
)
from millrace.telemetry.propagation import traceparent_of
from millrace.telemetry.span_record import SpanRecord
from millrace.testing.span_recorder import SpanRecorder, assert_edges, assert_one_trace
from tests.integration.gateway import queued_request
from tests.integration.stack import Stack

# Those between the two services and inside them.
EDGES = [
    edge
    for edge in (*SERVICE_EDGES, *STEP_EDGES)
    if edge.child_service in (SERVICE_SCHEDULER, SERVICE_WORKER)
]


@pytest.fixture
def recorder() -> Iterator[SpanRecorder]:
    made = SpanRecorder()
    made.install("scheduler")
    yield made
    made.clear()


def _named(spans: Sequence[SpanRecord], name: str) -> list[SpanRecord]:
    return [span for span in spans if span.name == name]


def _events(span: SpanRecord) -> list[str]:
    return [event.name for event in span.events]


async def test_request_is_one_trace_across_both_services(
    stack: Stack, recorder: SpanRecorder
) -> None:
    await stack.add_worker()
    gateway = await stack.gateway()
    with trace.get_tracer(__name__).start_as_current_span("send mr.v1.req") as sending:
        request = queued_request(traceparent=traceparent_of(sending))
        await gateway.send(stack.bus, request)
        await gateway.until_over()
    await stack.check_empty()
    await stack.stop_workers()
    spans = recorder.spans()
    # One process, so one service name.
    service = spans[0].service
    assert_edges(spans, [replace(e, parent_service=service, child_service=service) for e in EDGES])
    assert_one_trace(spans)
    (process,), (wait,) = _named(spans, SPAN_PROCESS), _named(spans, SPAN_QUEUE_WAIT)
    (prefill,), (decode,) = _named(spans, SPAN_PREFILL), _named(spans, SPAN_DECODE)
    assert wait.start_ns == process.start_ns
    assert wait.end_ns <= prefill.end_ns <= decode.start_ns
    assert _events(process) == [EVENT_ADMITTED, EVENT_FIRST_TOKEN, EVENT_FINISHED]
    assert {link.span_id for step in _named(spans, SPAN_STEP) for link in step.links} == {
        process.span_id
    }


async def test_preempted_request_tells_of_it(stack: Stack, recorder: SpanRecorder) -> None:
    await stack.add_worker(num_blocks=10, max_model_len=150)
    gateway = await stack.gateway()
    for number in range(1, 9):
        await gateway.send(stack.bus, queued_request(number, max_tokens=90))
    await gateway.until_over()
    processes = _named(recorder.spans(), SPAN_PROCESS)
    preempted = [span for span in processes if EVENT_PREEMPTED in _events(span)]
    assert len(processes) == 8
    assert sum(int(span.attributes[ATTR_NUM_PREEMPTIONS]) for span in preempted) == (
        (await stack.stats()).num_preemptions
    )
    for span in preempted:
        events = _events(span)
        assert events.count(EVENT_PREEMPTED) == events.count(EVENT_RESUMED)
        assert events[-1] == EVENT_FINISHED


async def test_aborted_request_ends_its_spans_with_the_reason(
    stack: Stack, recorder: SpanRecorder
) -> None:
    gateway = await stack.gateway()
    answer = await gateway.send(stack.bus, queued_request())
    await stack.until(lambda: bool(len(stack.service.ledger)))
    await gateway.stream.abort(answer.request.request_id, "client")
    await stack.check_empty()
    spans = recorder.spans()
    (process,) = _named(spans, SPAN_PROCESS)
    assert len(_named(spans, SPAN_QUEUE_WAIT)) == 1
    assert process.attributes[ATTR_ERROR_REASON] == "ABORTED"
