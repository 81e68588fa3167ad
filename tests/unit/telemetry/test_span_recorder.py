"""The recorder and the asserting functions: they must fail where a trace is broken."""

from __future__ import annotations

from dataclasses import replace

import pytest

from millrace.telemetry import names
from millrace.telemetry.names import CACHE_EDGES, SERVICE_EDGES, STEP_EDGES, Edge
from millrace.telemetry.span_record import SpanRecord, subtract, union
from millrace.testing.sample_trace import SampleTimings, sample_steps, sample_trace
from millrace.testing.span_recorder import (
    SpanRecorder,
    assert_edges,
    assert_one_trace,
    leaf_coverage,
)


def test_whole_trace_has_every_edge() -> None:
    spans = sample_trace(SampleTimings(look_up_s=0.001))

    assert_edges(spans)
    assert_edges(spans, CACHE_EDGES[:2])
    assert_edges([*spans, *sample_steps(spans)], STEP_EDGES)
    assert_one_trace([*spans, *sample_steps(spans)])


@pytest.mark.parametrize("edge", SERVICE_EDGES, ids=str)
def test_missing_parent_is_named(edge: Edge) -> None:
    spans = [
        replace(span, parent_id="f" * 16)
        if span.service == edge.child_service and names.matches_span(edge.child_span, span.name)
        else span
        for span in sample_trace()
    ]

    with pytest.raises(AssertionError) as caught:
        assert_edges(spans)

    assert str(edge) in str(caught.value)


@pytest.mark.parametrize("edge", SERVICE_EDGES, ids=str)
def test_missing_child_is_named(edge: Edge) -> None:
    spans = [
        span
        for span in sample_trace()
        if not (
            span.service == edge.child_service and names.matches_span(edge.child_span, span.name)
        )
    ]

    with pytest.raises(AssertionError) as caught:
        assert_edges(spans)

    assert f"{edge}: there is no such child span" in str(caught.value)


def test_step_without_its_link_is_named() -> None:
    spans = sample_trace()
    steps = [replace(step, links=()) for step in sample_steps(spans)]

    with pytest.raises(AssertionError, match="no such link"):
        assert_edges([*spans, *steps], STEP_EDGES)


def test_lost_context_is_seen_as_a_second_trace() -> None:
    spans = sample_trace()
    spans[-2] = replace(spans[-2], trace_id="e" * 32)

    with pytest.raises(AssertionError, match="2 traces"):
        assert_one_trace(spans)


def test_recorder_tells_services_apart() -> None:
    recorder = SpanRecorder()
    with recorder.tracer("gateway").start_as_current_span("send", attributes={"a": [1, 2]}):
        recorder.tracer("scheduler").start_span("process").end()

    process, send = recorder.spans()

    assert (send.service, process.service) == ("gateway", "scheduler")
    assert process.parent_id == send.span_id
    assert send.attributes == {"a": [1, 2]}


def test_coverage_is_the_union_of_the_leaves() -> None:
    def span(number: int, parent: int, start_ms: int, end_ms: int) -> SpanRecord:
        return SpanRecord(
            trace_id="1" * 32,
            span_id=f"{number:016x}",
            parent_id=f"{parent:016x}" if parent else "",
            service="gateway",
            name="chat m" if not parent else f"s{number}",
            kind="INTERNAL",
            start_ns=start_ms * 10**6,
            end_ns=end_ms * 10**6,
        )

    root = span(1, 0, 0, 100)
    assert leaf_coverage([root]) == 0.0
    # The inner span 2 covers all, but only leaves count; 3 and 4 overlap; 5 ends after the root.
    spans = [root, span(2, 1, 0, 100), span(3, 2, 10, 40), span(4, 2, 30, 50), span(5, 1, 90, 120)]
    assert leaf_coverage(spans) == pytest.approx(0.5)


def test_sample_trace_is_covered() -> None:
    assert leaf_coverage(sample_trace()) > 0.95


def test_interval_arithmetic() -> None:
    assert union([(5, 7), (1, 3), (2, 4), (9, 9)]) == [(1, 4), (5, 7)]
    assert subtract([(0, 10)], [(2, 3), (5, 20)]) == [(0, 2), (3, 5)]
    assert subtract([(0, 10)], []) == [(0, 10)]
