"""Why a request took as long as it did, from its spans and by explicit rules.

Every moment of the root span goes to the first of these that covers it:

1. setbacks     a worker lost, frozen or told to end, a failed step, a lost scheduler, preemption:
                from the last sign of life to the next token, the repeated prefill included
2. queue        `queue_wait`, and before it from the end of `send` to the start of `process`: the
                time that the message lay on NATS
3. prefill      `prefill`
4. worker       `decode`, and what a killed worker took with it
5. tokenizer    the gateway's Encode call
6. cache        the gateway's cache calls
7. intake       `send`, the publish

Before the last three: what the gateway waited for a part of the stack that was away, `hold`.

What none covers is split by two numbers that spans carry: first to the slow client (time that the
gateway had text which the client did not take), then to the tokenizer (time in Decode calls), the
rest to the gateway itself, or to the request whose run this one shares. Client and tokenizer can
overlap with decoding, where they cost nothing: so only time outside the spans above counts. The
cause is the longest setback if it took 5 %, else the largest share if it reaches 25 %; of a request
that was never accepted it is the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from millrace.core.loss import Loss

from . import names
from .cause import Cause
from .setback import Setback, setbacks_of, unseen_work
from .span_record import Interval, SpanRecord, clip, find_root, subtract, total_s, union
from .verdict import (
    MIN_SHARE,
    SETBACK_SHARE,
    Evidence,
    Fault,
    named,
    refusal_cause,
    tell,
    total,
)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The verdict: `seconds` holds every cause that took any time, and adds up to the root."""

    cause: Cause
    share: float
    sentence: str
    seconds: dict[Cause, float]
    num_steps: int
    mean_batch_size: float
    faults: tuple[Fault, ...] = ()


def diagnose(spans: Sequence[SpanRecord], steps: Sequence[SpanRecord] = ()) -> Diagnosis:
    """The diagnosis of one request; `steps` are the sampled batch steps it was in.

    Raises ValueError without spans.
    """
    root = find_root(spans)
    if root is None:
        raise ValueError("there are no spans")
    setbacks = setbacks_of(root, spans)
    seconds = _split(root, spans, setbacks)
    faults = (*_holds(spans, seconds), *_faults(setbacks, seconds))
    cause = _cause(root, seconds, faults)
    sizes = [float(step.attributes.get(names.ATTR_BATCH_SIZE, 0)) for step in steps]
    mean_batch_size = fmean(sizes) if sizes else 0.0
    longest = _longest(root, seconds)
    if any(fault.cause is longest for fault in faults):
        longest = Cause.NONE
    sentence = tell(Evidence(root, spans, seconds, faults, longest, mean_batch_size))
    share = seconds.get(cause, 0.0) / root.duration_s if root.duration_s > 0 else 0.0
    return Diagnosis(cause, share, sentence, seconds, len(steps), mean_batch_size, faults)


def _cause(root: SpanRecord, seconds: dict[Cause, float], faults: Sequence[Fault]) -> Cause:
    if not root.is_accepted:
        return refusal_cause(root)
    if faults:
        worst = max(faults, key=lambda fault: fault.seconds)
        if worst.seconds >= SETBACK_SHARE * root.duration_s:
            return worst.cause
    return _longest(root, seconds)


def _longest(root: SpanRecord, seconds: dict[Cause, float]) -> Cause:
    longest = max(seconds, key=lambda cause: seconds[cause], default=Cause.NONE)
    is_large = seconds.get(longest, 0.0) >= MIN_SHARE * root.duration_s > 0
    return longest if is_large else Cause.NONE


def _holds(spans: Sequence[SpanRecord], seconds: dict[Cause, float]) -> tuple[Fault, ...]:
    """What the gateway waited for, as one."""
    holds = named(spans, names.SPAN_HOLD)
    if not holds:
        return ()
    reasons = dict.fromkeys(str(hold.attributes.get(names.ATTR_HOLD_REASON, "")) for hold in holds)
    held_s = seconds.get(Cause.PART_AWAY, 0.0)
    return (Fault(Cause.PART_AWAY, len(holds), held_s, reasons=tuple(reasons)),)


def _faults(setbacks: Sequence[Setback], seconds: dict[Cause, float]) -> tuple[Fault, ...]:
    """The setbacks by cause, in order of their first; those of several choices at once are one."""
    faults = []
    for cause in dict.fromkeys(setback.cause for setback in setbacks):
        mine = [setback for setback in setbacks if setback.cause is cause]
        together = union((each.start_ns, max(each.end_ns, each.start_ns + 1)) for each in mine)
        workers = dict.fromkeys(each.worker_id for each in mine if each.worker_id)
        is_out_of_memory = all(each.loss is Loss.OUT_OF_MEMORY for each in mine)
        times = len(mine) if cause is Cause.SCHEDULER_LOST else len(together)
        fault_s = seconds.get(cause, 0.0)
        faults.append(Fault(cause, times, fault_s, tuple(workers), is_out_of_memory))
    return tuple(faults)


def _split(
    root: SpanRecord, spans: Sequence[SpanRecord], setbacks: Sequence[Setback]
) -> dict[Cause, float]:
    seconds: dict[Cause, float] = {}
    covered: list[Interval] = []
    for cause, intervals in [*_setback_claims(setbacks), *_claims(spans)]:
        inside = subtract(clip(intervals, root.start_ns, root.end_ns), covered)
        if inside:
            seconds[cause] = seconds.get(cause, 0.0) + total_s(inside)
            covered = union([*covered, *inside])
    rest_s = root.duration_s - total_s(covered)
    busy_s = total(named(spans, names.SPAN_DETOKENIZE), names.ATTR_DETOKENIZE_BUSY_S)
    is_shared = names.ATTR_SHARED_WITH in root.attributes
    for cause, claimed_s in (
        (Cause.CLIENT, total([root], names.ATTR_CLIENT_BLOCKED_S)),
        (Cause.TOKENIZER, busy_s),
        (Cause.SHARED if is_shared else Cause.GATEWAY, rest_s),
    ):
        taken_s = min(claimed_s, rest_s)
        if taken_s > 0:
            seconds[cause] = seconds.get(cause, 0.0) + taken_s
            rest_s -= taken_s
    return seconds


def _setback_claims(setbacks: Sequence[Setback]) -> list[tuple[Cause, list[Interval]]]:
    """What a worker did before the others: if two overlap, waiting for blocks comes last."""
    order = list(Cause)
    claims = [(setback.cause, setback.intervals) for setback in setbacks]
    return sorted(claims, key=lambda claim: order.index(claim[0]))


def _claims(spans: Sequence[SpanRecord]) -> list[tuple[Cause, list[Interval]]]:
    def of(*templates: str, service: str = "") -> list[Interval]:
        return [
            (span.start_ns, span.end_ns)
            for span in spans
            if span.name in templates and service in ("", span.service)
        ]

    unseen_prefill, unseen_decode = unseen_work(spans)
    return [
        (Cause.QUEUE, [*of(names.SPAN_QUEUE_WAIT), *_on_nats(spans)]),
        (Cause.PREFILL, of(names.SPAN_PREFILL)),
        (Cause.WORKER, of(names.SPAN_DECODE)),
        (Cause.PREFILL, unseen_prefill),
        (Cause.WORKER, unseen_decode),
        (Cause.PART_AWAY, of(names.SPAN_HOLD)),
        (Cause.TOKENIZER, of(names.SPAN_ENCODE, service=names.SERVICE_GATEWAY)),
        (Cause.CACHE, of(names.SPAN_CACHE_LOOK_UP, names.SPAN_CACHE_STORE)),
        (Cause.INTAKE, of(names.SPAN_SEND)),
    ]


def _on_nats(spans: Sequence[SpanRecord]) -> list[Interval]:
    """From the end of each `send`, or of the `process` before, to the start of `process`.

    A message that is delivered again may have been held by a scheduler that left no span.
    """
    left_ns = {span.span_id: span.end_ns for span in named(spans, names.SPAN_SEND)}
    intervals = []
    for span in sorted(named(spans, names.SPAN_PROCESS), key=lambda span: span.start_ns):
        is_first = span.attributes.get(names.ATTR_MESSAGING_DELIVERY_COUNT, 1) == 1
        key = span.parent_id if is_first else f"{span.parent_id} again"
        if key in left_ns:
            intervals.append((left_ns[key], span.start_ns))
        left_ns[f"{span.parent_id} again"] = span.end_ns
    return intervals
