"""Why a request took as long as it did, from its spans and by explicit rules.

Every moment of the root span goes to the first of these that covers it:

1. preemption   from `preempted` to `resumed` or to the next prefill, and any prefill after the
                first `preempted`
2. queue        `queue_wait`, and before it from the end of `send` to the start of `process`: the
                time that the message lay on NATS
3. prefill      `prefill`
4. worker       `decode`
5. tokenizer    the gateway's Encode call
6. cache        the gateway's cache calls
7. intake       `send`, the publish

What none covers is split by two numbers that spans carry: first to the slow client (time that the
gateway had text which the client did not take), then to the tokenizer (time in Decode calls), the
rest to the gateway itself. Both can overlap with decoding, where they cost nothing: so only time
outside the spans above counts. The cause is the largest share, if it reaches 25 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean
from typing import Any

from . import names
from .span_record import Interval, SpanRecord, clip, find_root, subtract, total_s, union

MIN_SHARE = 0.25


class Cause(StrEnum):
    """Where the time went."""

    PREEMPTION = "preemption"
    QUEUE = "queue"
    PREFILL = "prefill"
    WORKER = "worker"
    TOKENIZER = "tokenizer"
    CACHE = "cache"
    INTAKE = "intake"
    CLIENT = "slow client"
    GATEWAY = "gateway"
    NONE = "no single cause"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The verdict: `seconds` holds every cause that took any time, and adds up to the root."""

    cause: Cause
    share: float
    sentence: str
    seconds: dict[Cause, float]
    num_steps: int
    mean_batch_size: float


def diagnose(spans: Sequence[SpanRecord], steps: Sequence[SpanRecord] = ()) -> Diagnosis:
    """The diagnosis of one request; `steps` are the sampled batch steps it was in.

    Raises ValueError without spans.
    """
    root = find_root(spans)
    if root is None:
        raise ValueError("there are no spans")
    seconds = _split(root, spans)
    whole_s = root.duration_s
    largest = max(seconds, key=lambda cause: seconds[cause], default=Cause.NONE)
    share = seconds.get(largest, 0.0) / whole_s if whole_s > 0 else 0.0
    cause = largest if share >= MIN_SHARE else Cause.NONE
    sizes = [float(step.attributes.get(names.ATTR_BATCH_SIZE, 0)) for step in steps]
    mean_batch_size = fmean(sizes) if sizes else 0.0
    sentence = _sentence(cause, spans, seconds, whole_s, mean_batch_size)
    if root.status == "ERROR":
        reason = root.attributes.get(names.ATTR_ERROR_REASON) or root.status_message or "ERROR"
        sentence = f"failed ({reason}); {sentence}"
    return Diagnosis(cause, share, sentence, seconds, len(steps), mean_batch_size)


def _split(root: SpanRecord, spans: Sequence[SpanRecord]) -> dict[Cause, float]:
    seconds: dict[Cause, float] = {}
    covered: list[Interval] = []
    for cause, intervals in _claims(root, spans):
        inside = subtract(clip(intervals, root.start_ns, root.end_ns), covered)
        if inside:
            seconds[cause] = total_s(inside)
            covered = union([*covered, *inside])
    rest_s = root.duration_s - total_s(covered)
    busy_s = _sum(_named(spans, names.SPAN_DETOKENIZE), names.ATTR_DETOKENIZE_BUSY_S)
    for cause, claimed_s in (
        (Cause.CLIENT, _sum([root], names.ATTR_CLIENT_BLOCKED_S)),
        (Cause.TOKENIZER, busy_s),
        (Cause.GATEWAY, rest_s),
    ):
        taken_s = min(claimed_s, rest_s)
        if taken_s > 0:
            seconds[cause] = seconds.get(cause, 0.0) + taken_s
            rest_s -= taken_s
    return seconds


def _claims(root: SpanRecord, spans: Sequence[SpanRecord]) -> list[tuple[Cause, list[Interval]]]:
    def of(*templates: str, service: str = "") -> list[Interval]:
        return [
            (span.start_ns, span.end_ns)
            for span in spans
            if span.name in templates and service in ("", span.service)
        ]

    lost = _lost_intervals(root, spans)
    again = [
        (start, end)
        for start, end in of(names.SPAN_PREFILL)
        if lost and start >= min(begin for begin, _ in lost)
    ]
    return [
        (Cause.PREEMPTION, [*lost, *again]),
        (Cause.QUEUE, [*of(names.SPAN_QUEUE_WAIT), *_on_nats(spans)]),
        (Cause.PREFILL, of(names.SPAN_PREFILL)),
        (Cause.WORKER, of(names.SPAN_DECODE)),
        (Cause.TOKENIZER, of(names.SPAN_ENCODE, service=names.SERVICE_GATEWAY)),
        (Cause.CACHE, of(names.SPAN_CACHE_LOOK_UP, names.SPAN_CACHE_STORE)),
        (Cause.INTAKE, of(names.SPAN_SEND)),
    ]


def _lost_intervals(root: SpanRecord, spans: Sequence[SpanRecord]) -> list[Interval]:
    """From each `preempted` to the next `resumed` or prefill, or to the end."""
    prefills = [span.start_ns for span in _named(spans, names.SPAN_PREFILL)]
    lost: list[Interval] = []
    for span in _named(spans, names.SPAN_PROCESS):
        resumed = [event.time_ns for event in span.events if event.name == names.EVENT_RESUMED]
        for event in span.events:
            if event.name == names.EVENT_PREEMPTED:
                back = [at_ns for at_ns in (*resumed, *prefills) if at_ns >= event.time_ns]
                lost.append((event.time_ns, min([*back, span.end_ns, root.end_ns])))
    return lost


def _on_nats(spans: Sequence[SpanRecord]) -> list[Interval]:
    """From the end of each `send` to the start of its `process`."""
    sent_ns = {span.span_id: span.end_ns for span in _named(spans, names.SPAN_SEND)}
    return [
        (sent_ns[span.parent_id], span.start_ns)
        for span in _named(spans, names.SPAN_PROCESS)
        if span.parent_id in sent_ns
    ]


def _sentence(
    cause: Cause,
    spans: Sequence[SpanRecord],
    seconds: dict[Cause, float],
    whole_s: float,
    mean_batch_size: float,
) -> str:
    took = f"{format_s(seconds.get(cause, 0.0))} of {format_s(whole_s)}"
    if whole_s > 0:
        took += f" ({seconds.get(cause, 0.0) / whole_s:.0%})"
    if cause is Cause.NONE:
        parts = sorted(seconds.items(), key=lambda item: -item[1])[:3]
        shown = ", ".join(f"{name} {format_s(value)}" for name, value in parts)
        return f"no single cause took {MIN_SHARE:.0%} of {format_s(whole_s)}: {shown}"
    return _TELL[cause](spans, took, mean_batch_size)


def _tell_queue(spans: Sequence[SpanRecord], took: str, mean_batch_size: float) -> str:
    return f"queue: it waited {took} for a row"


def _tell_prefill(spans: Sequence[SpanRecord], took: str, mean_batch_size: float) -> str:
    prefills = _named(spans, names.SPAN_PREFILL)
    num_tokens = int(_sum(prefills, names.ATTR_PREFILL_NUM_TOKENS))
    num_chunks = int(_sum(prefills, names.ATTR_PREFILL_NUM_CHUNKS))
    how = f"prefill in {num_chunks} chunks" if num_chunks > 1 else "prefill"
    return f"{how}: {num_tokens} prompt tokens took {took}"


def _tell_preemption(spans: Sequence[SpanRecord], took: str, mean_batch_size: float) -> str:
    times = sum(
        event.name == names.EVENT_PREEMPTED
        for span in _named(spans, names.SPAN_PROCESS)
        for event in span.events
    )
    often = "once" if times == 1 else f"{times} times"
    return (
        f"preemption: it lost its row {often} for want of KV blocks, and getting back took {took}"
    )


def _tell_worker(spans: Sequence[SpanRecord], took: str, mean_batch_size: float) -> str:
    decodes = _named(spans, names.SPAN_DECODE)
    num_steps = int(_sum(decodes, names.ATTR_DECODE_NUM_STEPS))
    busy_s = sum(span.duration_s for span in decodes)
    each = f" of {format_s(busy_s / num_steps)} each" if num_steps else ""
    batch = f", in batches of {mean_batch_size:.1f} rows on average" if mean_batch_size else ""
    return f"worker: {num_steps or 'its'} decode steps{each} took {took}{batch}"


def _tell_tokenizer(spans: Sequence[SpanRecord], took: str, mean_batch_size: float) -> str:
    calls = _named(spans, names.SPAN_DETOKENIZE)
    busy_s = _sum(calls, names.ATTR_DETOKENIZE_BUSY_S)
    return f"tokenizer: Encode and {format_s(busy_s)} of Decode calls took {took}"


def _tell_cache(spans: Sequence[SpanRecord], took: str, mean_batch_size: float) -> str:
    return f"cache: the response cache took {took}"


def _tell_intake(spans: Sequence[SpanRecord], took: str, mean_batch_size: float) -> str:
    return f"intake: publishing on NATS took {took}"


def _tell_client(spans: Sequence[SpanRecord], took: str, mean_batch_size: float) -> str:
    return f"slow client: text lay ready for {took} before the client took it"


def _tell_gateway(spans: Sequence[SpanRecord], took: str, mean_batch_size: float) -> str:
    return f"gateway: no other service worked for it during {took}"


_TELL: dict[Cause, Callable[[Sequence[SpanRecord], str, float], str]] = {
    Cause.QUEUE: _tell_queue,
    Cause.PREFILL: _tell_prefill,
    Cause.PREEMPTION: _tell_preemption,
    Cause.WORKER: _tell_worker,
    Cause.TOKENIZER: _tell_tokenizer,
    Cause.CACHE: _tell_cache,
    Cause.INTAKE: _tell_intake,
    Cause.CLIENT: _tell_client,
    Cause.GATEWAY: _tell_gateway,
}


def format_s(seconds: float) -> str:
    """As `1.23 s` or `12.3 ms`."""
    if seconds >= 0.9995:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.1f} ms"


def _named(spans: Sequence[SpanRecord], name: str) -> list[SpanRecord]:
    return [span for span in spans if span.name == name]


def _sum(spans: Sequence[SpanRecord], attribute: str) -> float:
    return sum(_number(span.attributes.get(attribute)) for span in spans)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
