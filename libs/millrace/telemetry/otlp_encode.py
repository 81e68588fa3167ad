"""From span records back to an OTLP export request: for replays, and for tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from .span_record import SpanRecord


def export_request(
    spans: Iterable[SpanRecord], resource: Mapping[str, str] | None = None
) -> ExportTraceServiceRequest:
    """The spans with one resource per service, which has the attributes `resource` besides."""
    request = ExportTraceServiceRequest()
    by_service: dict[str, list[SpanRecord]] = {}
    for span in spans:
        by_service.setdefault(span.service, []).append(span)
    for service, members in by_service.items():
        resource_spans = request.resource_spans.add()
        attributes = {"service.name": service, **(resource or {})}
        resource_spans.resource.attributes.extend(
            _pair(key, value) for key, value in attributes.items()
        )
        resource_spans.scope_spans.add().spans.extend(_span(span) for span in members)
    return request


def _span(span: SpanRecord) -> Span:
    message = Span(
        trace_id=bytes.fromhex(span.trace_id),
        span_id=bytes.fromhex(span.span_id),
        parent_span_id=bytes.fromhex(span.parent_id),
        name=span.name,
        kind=Span.SpanKind.Value(f"SPAN_KIND_{span.kind}"),
        start_time_unix_nano=span.start_ns,
        end_time_unix_nano=span.end_ns,
        attributes=[_pair(key, value) for key, value in span.attributes.items()],
        status=Status(
            code=Status.StatusCode.Value(f"STATUS_CODE_{span.status}"), message=span.status_message
        ),
    )
    for event in span.events:
        pairs = [_pair(key, value) for key, value in event.attributes.items()]
        message.events.add(name=event.name, time_unix_nano=event.time_ns, attributes=pairs)
    for link in span.links:
        message.links.add(
            trace_id=bytes.fromhex(link.trace_id), span_id=bytes.fromhex(link.span_id)
        )
    return message


def _pair(key: str, value: Any) -> KeyValue:
    return KeyValue(key=key, value=_value(value))


def _value(value: Any) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, list | tuple):
        return AnyValue(array_value=ArrayValue(values=[_value(item) for item in value]))
    return AnyValue(string_value=str(value))
