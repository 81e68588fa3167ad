"""From an OTLP export request, and from the SDK's spans, to span records."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span, Status

from .names import SPAN_STEP
from .span_record import SpanEvent, SpanLink, SpanRecord

TRACE_ID_BYTES = 16
SPAN_ID_BYTES = 8
# A value longer than this is no name, number or id; it is cut, as the store is bounded.
MAX_VALUE_CHARS = 4096

_KINDS = {number: name.removeprefix("SPAN_KIND_") for name, number in Span.SpanKind.items()}
_STATUSES = {
    number: name.removeprefix("STATUS_CODE_") for name, number in Status.StatusCode.items()
}


def parse_request(body: bytes) -> ExportTraceServiceRequest:
    """A serialized ExportTraceServiceRequest. Raises ValueError where the body is none."""
    try:
        request = ExportTraceServiceRequest.FromString(body)
    except DecodeError:
        raise ValueError("the body is not an OTLP trace export request") from None
    if body and not request.resource_spans:
        raise ValueError("the body holds no resource spans")
    return request


def records_of(request: ExportTraceServiceRequest) -> list[SpanRecord]:
    """The request's spans; those with ids of a wrong size are left out."""
    records: list[SpanRecord] = []
    for resource_spans in request.resource_spans:
        service = service_of(resource_spans)
        for scope_spans in resource_spans.scope_spans:
            records.extend(
                _record(span, service) for span in scope_spans.spans if _has_valid_ids(span)
            )
    return records


def decode_spans(body: bytes) -> list[SpanRecord]:
    """Both in one. Raises ValueError as `parse_request` does."""
    return records_of(parse_request(body))


def service_of(resource_spans: ResourceSpans) -> str:
    """Name of the service that made the spans."""
    for pair in resource_spans.resource.attributes:
        if pair.key == "service.name":
            return pair.value.string_value
    return "unknown"


def is_step(span: Span) -> bool:
    """True for the root span of a batch step."""
    return span.name == SPAN_STEP and not span.parent_span_id


def _has_valid_ids(span: Span) -> bool:
    return (
        len(span.trace_id) == TRACE_ID_BYTES
        and len(span.span_id) == SPAN_ID_BYTES
        and len(span.parent_span_id) in (0, SPAN_ID_BYTES)
        and max(span.start_time_unix_nano, span.end_time_unix_nano) < 1 << 63
    )


def _record(span: Span, service: str) -> SpanRecord:
    return SpanRecord(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        service=service,
        name=span.name,
        kind=_KINDS.get(span.kind, "UNSPECIFIED"),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        events=tuple(
            SpanEvent(event.name, event.time_unix_nano, _attributes(event.attributes))
            for event in span.events
        ),
        links=tuple(SpanLink(link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        status=_STATUSES.get(span.status.code, "UNSET"),
        status_message=span.status.message[:MAX_VALUE_CHARS],
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "string_value":
        return value.string_value[:MAX_VALUE_CHARS]
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    if kind == "bytes_value":
        return value.bytes_value[:MAX_VALUE_CHARS].hex()
    return getattr(value, kind) if kind else None
