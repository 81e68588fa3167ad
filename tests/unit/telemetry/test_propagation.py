"""W3C trace context, there and back."""

from __future__ import annotations

import pytest
from opentelemetry import trace

from millrace.telemetry.propagation import (
    context_from_traceparent,
    extract,
    inject,
    span_context_from_traceparent,
    traceparent_of,
)
from millrace.testing.span_recorder import SpanRecorder

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN_ID = "00f067aa0ba902b7"


def test_traceparent_of_a_span_names_it_and_its_sampling() -> None:
    span = SpanRecorder().tracer("gateway").start_span("a")

    text = traceparent_of(span)

    context = span.get_span_context()
    assert context.trace_flags.sampled
    flags = int(context.trace_flags)
    assert text == f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"


def test_child_in_another_service_joins_the_trace_through_the_header() -> None:
    recorder = SpanRecorder()
    carrier: dict[str, str] = {}
    with recorder.tracer("gateway").start_as_current_span("send"):
        inject(carrier)
    recorder.tracer("scheduler").start_span("process", context=extract(carrier)).end()

    send, process = recorder.spans()
    assert process.trace_id == send.trace_id
    assert process.parent_id == send.span_id


@pytest.mark.parametrize("flags", ["00", "01", "03"])
def test_traceparent_survives_the_round_trip(flags: str) -> None:
    text = f"00-{TRACE_ID}-{SPAN_ID}-{flags}"

    assert traceparent_of(trace.get_current_span(context_from_traceparent(text))) == text


def test_without_a_span_there_is_no_header() -> None:
    carrier: dict[str, str] = {}

    inject(carrier)

    assert traceparent_of() == ""
    assert carrier == {}


def test_tracestate_is_carried_on() -> None:
    headers = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01", "tracestate": "vendor=1,other=2"}
    carrier: dict[str, str] = {}
    recorder = SpanRecorder()

    with recorder.tracer("gateway").start_as_current_span("a", context=extract(headers)):
        inject(carrier)

    assert carrier["tracestate"] == "vendor=1,other=2"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        f"00-{TRACE_ID}-{SPAN_ID}",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-01-more",
        f"00-{TRACE_ID}-{SPAN_ID}-01\n00",
    ],
)
def test_bad_traceparent_is_ignored(text: str) -> None:
    assert not trace.get_current_span(context_from_traceparent(text)).get_span_context().is_valid
    assert span_context_from_traceparent(text) is None
    assert not trace.get_current_span(extract({"traceparent": text})).get_span_context().is_valid


def test_later_version_with_more_fields_is_read() -> None:
    context = span_context_from_traceparent(f"01-{TRACE_ID}-{SPAN_ID}-01-more")

    assert context is not None
    assert f"{context.trace_id:032x}" == TRACE_ID
