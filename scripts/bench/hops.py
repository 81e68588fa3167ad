"""What every hop of a request takes, from the spans of its trace."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import median

from millrace.core.errors import RequestNotFound
from millrace.telemetry import names
from millrace.telemetry.span_record import SpanRecord, find_root
from millrace.telemetry.store import TraceStore

WAIT_S = 15.0
POLL_S = 0.5
NS_PER_MS = 1e6


class TraceSpans:
    """The spans of one request."""

    def __init__(self, spans: Sequence[SpanRecord]) -> None:
        self._spans = spans

    def get(self, name: str, service: str = "") -> SpanRecord:
        """The one of that name. Raises LookupError where there is none."""
        for span in self._spans:
            if span.name == name and service in ("", span.service):
                return span
        raise LookupError(name)

    @property
    def root(self) -> SpanRecord:
        """The gateway's span around the request."""
        root = find_root(self._spans)
        if root is None:
            raise LookupError("root")
        return root

    def event_ns(self, span: SpanRecord, name: str) -> int:
        """When it happened. Raises LookupError where it did not."""
        for event in span.events:
            if event.name == name:
                return event.time_ns
        raise LookupError(name)


def _length(span: SpanRecord) -> float:
    return (span.end_ns - span.start_ns) / NS_PER_MS


def _encode(spans: TraceSpans) -> float:
    return _length(spans.get(names.SPAN_ENCODE, names.SERVICE_GATEWAY))


def _encode_work(spans: TraceSpans) -> float:
    return _length(spans.get(names.SPAN_ENCODE, names.SERVICE_TOKENIZER))


def _before_encode(spans: TraceSpans) -> float:
    encode = spans.get(names.SPAN_ENCODE, names.SERVICE_GATEWAY)
    return (encode.start_ns - spans.root.start_ns) / NS_PER_MS


def _publish(spans: TraceSpans) -> float:
    return _length(spans.get(names.SPAN_SEND))


def _to_scheduler(spans: TraceSpans) -> float:
    send, process = spans.get(names.SPAN_SEND), spans.get(names.SPAN_PROCESS)
    return (process.start_ns - send.start_ns) / NS_PER_MS


def _to_prefill(spans: TraceSpans) -> float:
    process, prefill = spans.get(names.SPAN_PROCESS), spans.get(names.SPAN_PREFILL)
    return (prefill.start_ns - process.start_ns) / NS_PER_MS


def _prefill(spans: TraceSpans) -> float:
    return _length(spans.get(names.SPAN_PREFILL))


def _first_token(spans: TraceSpans) -> float:
    first_ns = spans.event_ns(spans.root, names.EVENT_FIRST_TOKEN)
    return (first_ns - spans.get(names.SPAN_PREFILL).end_ns) / NS_PER_MS


def _decode_step(spans: TraceSpans) -> float:
    decode = spans.get(names.SPAN_DECODE)
    return _length(decode) / max(1, int(decode.attributes[names.ATTR_DECODE_NUM_STEPS]))


def _detokenize(spans: TraceSpans) -> float:
    calls = spans.get(names.SPAN_DETOKENIZE)
    busy_s = float(calls.attributes[names.ATTR_DETOKENIZE_BUSY_S])
    return busy_s * 1000 / max(1, int(calls.attributes[names.ATTR_DETOKENIZE_NUM_CALLS]))


def _end(spans: TraceSpans) -> float:
    return (spans.root.end_ns - spans.get(names.SPAN_DECODE).end_ns) / NS_PER_MS


HOPS: dict[str, Callable[[TraceSpans], float]] = {
    "arrival to encode": _before_encode,
    "encode, call": _encode,
    "encode, in the tokenizer": _encode_work,
    "publish to acknowledged": _publish,
    "publish to scheduler": _to_scheduler,
    "queue_wait to prefill start": _to_prefill,
    "prefill": _prefill,
    "prefill end to first token out": _first_token,
    "decode, per step": _decode_step,
    "detokenize, per call": _detokenize,
    "last step to end": _end,
}


def hop_medians(store: Path, request_ids: Iterable[str]) -> dict[str, float]:
    """Median milliseconds of every hop over the requests. Raises RequestNotFound."""
    traces = [_load(store, request_id) for request_id in request_ids]
    return {
        hop: round(median(measure(trace) for trace in traces), 3) for hop, measure in HOPS.items()
    }


def prefill_ms(store: Path, request_ids: Iterable[str]) -> list[float]:
    """Of each request: from its plan at the worker to the end of the step that sampled."""
    return [_prefill(_load(store, request_id)) for request_id in request_ids]


def _load(path: Path, request_id: str) -> TraceSpans:
    """Its spans once every hop is there: they leave each process about once a second."""
    deadline = time.monotonic() + WAIT_S
    store = TraceStore(path)
    try:
        while True:
            try:
                spans = TraceSpans(store.load(store.find(request_id)).spans)
                for measure in HOPS.values():
                    measure(spans)
                return spans
            except (RequestNotFound, LookupError):
                if time.monotonic() > deadline:
                    raise
            time.sleep(POLL_S)
    finally:
        store.close()
