"""Spans of a request: names, parents, attributes, and nothing of its text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from millrace.gateway import calls, pipeline, record
from millrace.telemetry import names

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.gateway.conftest import Harness

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hush"}], "temperature": 0.5}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for module in (calls, pipeline, record):
        monkeypatch.setattr(module, "_tracer", provider.get_tracer(module.__name__))
    yield exporter
    provider.shutdown()


def by_name(exporter: InMemorySpanExporter) -> Any:
    return {span.name: span for span in exporter.get_finished_spans()}


async def test_root_send_and_detokenize_are_one_trace(gateway: Harness, spans: Any) -> None:
    async with gateway.client() as client:
        reply = await client.post(CHAT, json=BODY)

    found = by_name(spans)
    root = found["chat tiny"]
    assert root.kind is trace.SpanKind.SERVER
    assert set(found) == {"chat tiny", names.SPAN_SEND, names.SPAN_DETOKENIZE}
    for name in (names.SPAN_SEND, names.SPAN_DETOKENIZE):
        assert found[name].parent.span_id == root.context.span_id
    assert found[names.SPAN_SEND].kind is trace.SpanKind.PRODUCER
    assert f"{root.context.trace_id:032x}" == reply.headers["traceresponse"].split("-")[1]
    sent = gateway.bus.headers[0]["traceparent"].split("-")
    assert sent[2] == f"{found[names.SPAN_SEND].context.span_id:016x}"


async def test_root_has_the_attributes_and_no_text(gateway: Harness, spans: Any) -> None:
    async with gateway.client() as client:
        await client.post(CHAT, json={**BODY, "stream": True})

    root = by_name(spans)["chat tiny"]
    attributes = dict(root.attributes)
    assert attributes[names.ATTR_OPERATION_NAME] == "chat"
    assert attributes[names.ATTR_REQUEST_MODEL] == "tiny"
    assert attributes[names.ATTR_REQUEST_TEMPERATURE] == 0.5
    assert attributes[names.ATTR_USAGE_INPUT_TOKENS] == 5
    assert attributes[names.ATTR_USAGE_OUTPUT_TOKENS] == 5
    assert attributes[names.ATTR_RESPONSE_FINISH_REASONS] == ("stop",)
    assert attributes[names.ATTR_REQUEST_ID] == gateway.queued.request_id
    assert [event.name for event in root.events] == [names.EVENT_FIRST_TOKEN]
    assert "hush" not in str(attributes)
    assert "Hello" not in str(attributes)


async def test_error_marks_the_root(gateway: Harness, spans: Any) -> None:
    async with gateway.client() as client:
        await client.post(CHAT, json={**BODY, "temperature": 9})

    root = by_name(spans)["chat"]
    assert root.status.status_code is trace.StatusCode.ERROR
    assert root.attributes[names.ATTR_ERROR_REASON] == "INVALID_REQUEST"


async def test_probes_make_no_spans(gateway: Harness, spans: Any) -> None:
    async with gateway.client() as client:
        await client.get("/health")
        await client.get("/metrics")

    assert spans.get_finished_spans() == ()


async def test_batch_has_a_span_per_prompt_below_its_root(gateway: Harness, spans: Any) -> None:
    requests = [{"prompt": "a"}, {"prompt": "b"}]
    async with gateway.client() as client:
        await client.post("/generate/batch", json={"requests": requests})

    finished = spans.get_finished_spans()
    root = next(span for span in finished if span.parent is None)
    parts = [span for span in finished if span.name == "text_completion tiny"]
    assert len(parts) == 2
    assert {part.parent.span_id for part in parts} == {root.context.span_id}


async def test_callers_trace_is_continued(gateway: Harness, spans: Any) -> None:
    parent = f"00-{'1' * 32}-{'2' * 16}-01"
    async with gateway.client() as client:
        await client.post(CHAT, json=BODY, headers={"traceparent": parent})

    root = by_name(spans)["chat tiny"]
    assert f"{root.context.trace_id:032x}" == "1" * 32
    assert f"{root.parent.span_id:016x}" == "2" * 16
