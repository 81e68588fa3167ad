"""What threw a request back, and how long each took: from the events in its spans."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from millrace.core.loss import Loss

from . import names
from .cause import CAUSE_OF_LOSS, Cause
from .span_record import NS_PER_S, Interval, SpanEvent, SpanRecord


@dataclass(frozen=True, slots=True)
class Setback:
    """From the last sign of life before a loss to the next token; `worker_id` may be empty.

    The prefill that computes everything again stands apart in `prefills`: in old traces the time
    before it ends with the event `resumed`.
    """

    loss: Loss
    worker_id: str
    start_ns: int
    end_ns: int
    prefills: tuple[Interval, ...] = ()

    @property
    def cause(self) -> Cause:
        """As the diagnosis calls it."""
        return CAUSE_OF_LOSS[self.loss]

    @property
    def intervals(self) -> list[Interval]:
        """All of its time."""
        return [(self.start_ns, self.end_ns), *self.prefills]


def setbacks_of(root: SpanRecord, spans: Sequence[SpanRecord]) -> list[Setback]:
    """Every one, by start."""
    found = [*_lost_rows(root, spans), *_lost_schedulers(root, spans)]
    return sorted(found, key=lambda setback: setback.start_ns)


def unseen_work(spans: Iterable[SpanRecord]) -> tuple[list[Interval], list[Interval]]:
    """(prefill, decode) that a worker took with it: one that is killed sends no spans."""
    prefill: list[Interval] = []
    decode: list[Interval] = []
    for span in _named(spans, names.SPAN_PROCESS):
        admitted_ns = running_ns = 0
        for event in _in_order(span):
            if event.name == names.EVENT_ADMITTED:
                admitted_ns = event.time_ns
            elif event.name in (names.EVENT_FIRST_TOKEN, names.EVENT_RESUMED):
                running_ns = event.time_ns
            elif event.name == names.EVENT_PREEMPTED:
                lost_ns = _start_of(event, span)
                if admitted_ns:
                    prefill.append((admitted_ns, running_ns or lost_ns))
                if running_ns:
                    decode.append((running_ns, lost_ns))
                admitted_ns = running_ns = 0
    return prefill, decode


def _lost_rows(root: SpanRecord, spans: Sequence[SpanRecord]) -> Iterator[Setback]:
    prefills = _named(spans, names.SPAN_PREFILL)
    for span in _named(spans, names.SPAN_PROCESS):
        events = _in_order(span)
        lost = [event for event in events if event.name == names.EVENT_PREEMPTED]
        for event in lost:
            later = [each for each in events if each.time_ns > event.time_ns and _same(each, event)]
            next_loss_ns = _first(later, names.EVENT_PREEMPTED)
            again = [
                prefill
                for prefill in prefills
                if event.time_ns <= prefill.start_ns < next_loss_ns and _same(prefill, event)
            ]
            back_ns = _first(later, names.EVENT_RESUMED)
            ends = [back_ns, next_loss_ns, *(prefill.start_ns for prefill in again)]
            yield Setback(
                _loss_of(event),
                str(event.attributes.get(names.ATTR_WORKER_ID, "")),
                _start_of(event, span),
                min([*ends, span.end_ns, root.end_ns]),
                tuple((prefill.start_ns, prefill.end_ns) for prefill in again),
            )


def _lost_schedulers(root: SpanRecord, spans: Sequence[SpanRecord]) -> Iterator[Setback]:
    events = _in_order(root)
    processes = sorted(_named(spans, names.SPAN_PROCESS), key=lambda span: span.start_ns)
    covered_ns = 0
    for event in (event for event in events if event.name == names.EVENT_SCHEDULER_LOST):
        if event.time_ns < covered_ns:
            # The gateway tried a scheduler that did not hold the request yet.
            continue
        start_ns = _start_of(event, root)
        if any(span.start_ns <= start_ns and event.time_ns < span.end_ns for span in processes):
            end_ns = _named_again_ns(events, event)
        else:
            later = (span for span in processes if span.start_ns > start_ns)
            successor = next(later, None)
            end_ns = _taken_over_ns(successor, events, event) if successor else root.end_ns
        covered_ns = min(end_ns, root.end_ns)
        yield Setback(Loss.SCHEDULER_LOST, "", start_ns, covered_ns)


def _named_again_ns(events: Sequence[SpanEvent], lost: SpanEvent) -> int:
    """When the scheduler, which went on, heard of the request on a stream that held."""
    later = [event for event in events if event.time_ns > lost.time_ns]
    until_ns = _first(later, names.EVENT_SCHEDULER_LOST)
    back = [
        event.time_ns
        for event in later
        if event.name == names.EVENT_SCHEDULER_BACK and event.time_ns < until_ns
    ]
    return back[-1] if back else until_ns


def _taken_over_ns(process: SpanRecord, events: Sequence[SpanEvent], lost: SpanEvent) -> int:
    """When a request was as far as before: at a token if it had some, else in the queue again."""
    had_tokens = _first(events, names.EVENT_FIRST_TOKEN) < lost.time_ns
    if not had_tokens:
        return process.start_ns
    return min(_first(process.events, names.EVENT_FIRST_TOKEN), process.end_ns)


def _loss_of(event: SpanEvent) -> Loss:
    reason = event.attributes.get(names.ATTR_LOSS_REASON)
    if reason in list(Loss):
        return Loss(reason)
    # Older spans gave no reason, and a worker only if it was lost.
    return Loss.WORKER_LOST if names.ATTR_WORKER_ID in event.attributes else Loss.BLOCKS


def _start_of(event: SpanEvent, span: SpanRecord) -> int:
    silent_s = event.attributes.get(names.ATTR_SILENT_S, 0.0)
    silent_ns = int(silent_s * NS_PER_S) if isinstance(silent_s, int | float) else 0
    return max(span.start_ns, event.time_ns - silent_ns)


def _same(other: SpanEvent | SpanRecord, event: SpanEvent) -> bool:
    """True unless both name a choice, and not the same one."""
    mine = event.attributes.get(names.ATTR_CHOICE)
    theirs = other.attributes.get(names.ATTR_CHOICE, mine)
    return mine is None or mine == theirs


def _first(events: Iterable[SpanEvent], name: str) -> int:
    """Time of the first event of that name; beyond all times without one."""
    return min((event.time_ns for event in events if event.name == name), default=1 << 63)


def _in_order(span: SpanRecord) -> list[SpanEvent]:
    return sorted(span.events, key=lambda event: event.time_ns)


def _named(spans: Iterable[SpanRecord], name: str) -> list[SpanRecord]:
    return [span for span in spans if span.name == name]
