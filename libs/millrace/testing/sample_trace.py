"""A made-up request trace, whole in its edges, with the timings a test asks for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from millrace.telemetry import names
from millrace.telemetry.otlp_encode import export_request
from millrace.telemetry.span_record import SpanEvent, SpanLink, SpanRecord


@dataclass(frozen=True, slots=True)
class SampleTimings:
    """Lengths of a request's phases, seconds, in their order; what is 0 does not happen."""

    look_up_s: float = 0.0
    encode_s: float = 0.002
    send_s: float = 0.001
    queue_s: float = 0.005
    prefill_s: float = 0.04
    num_chunks: int = 1
    decode_s: float = 0.4
    num_steps: int = 40
    preempted_s: float = 0.0
    detokenize_s: float = 0.01
    blocked_s: float = 0.0
    gateway_s: float = 0.001


def sample_trace(
    timings: SampleTimings | None = None,
    *,
    number: int = 1,
    start_ns: int = 1_700_000_000_000_000_000,
    model: str = "smollm2",
) -> list[SpanRecord]:
    """Spans of one request, root first; ids follow from `number`, which must be above 0."""
    return _TraceMaker(timings or SampleTimings(), number, start_ns).make(model)


def sample_steps(
    spans: Sequence[SpanRecord], *, count: int = 4, batch_size: int = 8, number: int = 1
) -> list[SpanRecord]:
    """Sampled batch steps that link to the request's `process` span."""
    member = next(span for span in spans if span.name == names.SPAN_PROCESS)
    steps = []
    for index in range(count):
        start_ns = member.start_ns + (index + 1) * 20_000_000
        steps.append(
            SpanRecord(
                trace_id=f"{(number << 32) + (1 << 100) + index:032x}",
                span_id=f"{(number << 32) + (1 << 60) + index:016x}",
                parent_id="",
                service=names.SERVICE_SCHEDULER,
                name=names.SPAN_STEP,
                kind="INTERNAL",
                start_ns=start_ns,
                end_ns=start_ns + 10_000_000,
                attributes={
                    names.ATTR_BATCH_SIZE: batch_size,
                    names.ATTR_BATCH_NUM_TOKENS: batch_size,
                    names.ATTR_BATCH_KIND: "decode",
                },
                links=(SpanLink(member.trace_id, member.span_id),),
            )
        )
    return steps


class _TraceMaker:
    """Lays the phases one after another."""

    def __init__(self, timings: SampleTimings, number: int, start_ns: int) -> None:
        self._timings = timings
        self._number = number
        self._start_ns = start_ns
        self._now_ns = start_ns
        self._spans: list[SpanRecord] = []

    def make(self, model: str) -> list[SpanRecord]:
        timings = self._timings
        root = self._open(None, "gateway", names.request_span_name("chat", model), "SERVER")
        self._call(root, names.SPAN_CACHE_LOOK_UP, names.SERVICE_CACHE, timings.look_up_s)
        self._call(root, names.SPAN_ENCODE, names.SERVICE_TOKENIZER, timings.encode_s)
        send = self._leaf(root, "gateway", names.SPAN_SEND, "PRODUCER", timings.send_s)
        process_start_ns = self._now_ns
        process = self._open(send, "scheduler", names.SPAN_PROCESS, "CONSUMER")
        events = [SpanEvent(names.EVENT_QUEUED, self._now_ns)]
        self._leaf(process, "scheduler", names.SPAN_QUEUE_WAIT, "INTERNAL", timings.queue_s)
        events.append(SpanEvent(names.EVENT_ADMITTED, self._now_ns))
        self._prefill(process)
        events.append(SpanEvent(names.EVENT_FIRST_TOKEN, self._now_ns))
        self._decode(process, events)
        events.append(SpanEvent(names.EVENT_FINISHED, self._now_ns))
        self._close(process, {names.ATTR_REQUEST_ID: self._request_id}, events)
        decoded_ns = self._now_ns
        self._now_ns += _ns(timings.blocked_s)
        self._add_detokenize(root, process_start_ns, decoded_ns)
        self._now_ns += _ns(timings.gateway_s)
        attributes = {
            names.ATTR_OPERATION_NAME: names.OPERATION_CHAT,
            names.ATTR_PROVIDER_NAME: "millrace",
            names.ATTR_REQUEST_MODEL: model,
            names.ATTR_REQUEST_ID: self._request_id,
            names.ATTR_USAGE_INPUT_TOKENS: 100,
            names.ATTR_USAGE_OUTPUT_TOKENS: timings.num_steps + 1,
            names.ATTR_CLIENT_BLOCKED_S: timings.blocked_s,
        }
        self._close(root, attributes)
        return self._spans

    @property
    def _request_id(self) -> str:
        return f"{self._number:08x}{'ab' * 12}"

    def _prefill(self, process: int) -> None:
        attributes = {
            names.ATTR_PREFILL_NUM_TOKENS: 100,
            names.ATTR_PREFILL_NUM_CHUNKS: self._timings.num_chunks,
        }
        length_s = self._timings.prefill_s
        self._leaf(process, "worker", names.SPAN_PREFILL, "INTERNAL", length_s, attributes)

    def _decode(self, process: int, events: list[SpanEvent]) -> None:
        timings = self._timings
        parts = 2 if timings.preempted_s else 1
        for part in range(parts):
            if part:
                events.append(SpanEvent(names.EVENT_PREEMPTED, self._now_ns))
                self._now_ns += _ns(timings.preempted_s)
                events.append(SpanEvent(names.EVENT_RESUMED, self._now_ns))
                self._prefill(process)
            attributes = {names.ATTR_DECODE_NUM_STEPS: timings.num_steps // parts}
            length_s = timings.decode_s / parts
            self._leaf(process, "worker", names.SPAN_DECODE, "INTERNAL", length_s, attributes)

    def _add_detokenize(self, root: int, start_ns: int, decoded_ns: int) -> None:
        span = self._open(root, "gateway", names.SPAN_DETOKENIZE, "INTERNAL")
        self._now_ns = max(self._now_ns, decoded_ns)
        self._close(span, {names.ATTR_DETOKENIZE_BUSY_S: self._timings.detokenize_s})
        self._spans[span] = replace(self._spans[span], start_ns=start_ns)

    def _call(self, root: int, method: str, service: str, length_s: float) -> None:
        if length_s:
            client = self._open(root, "gateway", method, "CLIENT")
            self._leaf(client, service, method, "SERVER", length_s)
            self._close(client)

    def _leaf(
        self,
        parent: int,
        service: str,
        name: str,
        kind: str,
        length_s: float,
        attributes: dict[str, Any] | None = None,
    ) -> int:
        span = self._open(parent, service, name, kind)
        self._now_ns += _ns(length_s)
        self._close(span, attributes)
        return span

    def _open(self, parent: int | None, service: str, name: str, kind: str) -> int:
        index = len(self._spans)
        self._spans.append(
            SpanRecord(
                trace_id=f"{self._number << 64:032x}",
                span_id=f"{(self._number << 16) + index + 1:016x}",
                parent_id="" if parent is None else self._spans[parent].span_id,
                service=service,
                name=name,
                kind=kind,
                start_ns=self._now_ns,
                end_ns=self._now_ns,
            )
        )
        return index

    def _close(
        self,
        index: int,
        attributes: dict[str, Any] | None = None,
        events: Sequence[SpanEvent] = (),
    ) -> None:
        span = self._spans[index]
        self._spans[index] = replace(
            span, end_ns=self._now_ns, attributes=attributes or {}, events=tuple(events)
        )


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def otlp_body(spans: Iterable[SpanRecord]) -> bytes:
    """The spans as an OTLP export request, one resource per service."""
    return export_request(spans).SerializeToString()
