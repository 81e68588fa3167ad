"""What threw a request back, by the events in its spans: each fault with its seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from millrace.core.loss import Loss
from millrace.telemetry import names
from millrace.telemetry.cause import CAUSE_OF_LOSS, Cause
from millrace.telemetry.diagnosis import diagnose
from millrace.telemetry.span_record import SpanEvent, SpanRecord
from millrace.testing.sample_trace import SampleTimings, sample_trace

NS_PER_S = 10**9
LOST = SampleTimings(preempted_s=2.0, prefill_s=0.3, decode_s=4.0)


def _process(spans: Sequence[SpanRecord]) -> SpanRecord:
    return next(span for span in spans if span.name == names.SPAN_PROCESS)


def _with(spans: list[SpanRecord], changed: SpanRecord) -> list[SpanRecord]:
    return [changed if span.span_id == changed.span_id else span for span in spans]


def _marked(spans: list[SpanRecord], name: str, attributes: Mapping[str, Any]) -> list[SpanRecord]:
    """With these attributes on the events of that name."""
    process = _process(spans)
    events = [
        replace(event, attributes=attributes) if event.name == name else event
        for event in process.events
    ]
    return _with(spans, replace(process, events=events))


def _lost(loss: Loss, **attributes: Any) -> list[SpanRecord]:
    told = {names.ATTR_LOSS_REASON: loss.value, names.ATTR_WORKER_ID: "w1", **attributes}
    return _marked(sample_trace(LOST), names.EVENT_PREEMPTED, told)


def _without(spans: Sequence[SpanRecord], *lost: str) -> list[SpanRecord]:
    return [span for span in spans if span.name not in lost]


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (Loss.WORKER_LOST, "worker lost: w1 went away once"),
        (Loss.WORKER_FROZEN, "worker frozen: w1 stood still once"),
        (Loss.WORKER_LEFT, "worker left: w1 was told to end once"),
        (Loss.STEP_FAILED, "step failed: it lost its row once on w1"),
        (
            Loss.OUT_OF_MEMORY,
            "step failed: it lost its row once on w1, the step being out of memory",
        ),
        (Loss.BLOCKS, "preemption: it lost its row once for want of KV blocks"),
    ],
)
def test_each_loss_of_a_row_is_told_by_its_reason(loss: Loss, words: str) -> None:
    diagnosis = diagnose(_lost(loss))

    assert diagnosis.cause is CAUSE_OF_LOSS[loss]
    assert f"cause: {words}, and getting back took 2.30 s of " in diagnosis.sentence
    assert diagnosis.sentence.endswith("100.0 ms each took 4.00 s of 6.61 s (61%)")
    assert diagnosis.seconds[diagnosis.cause] == pytest.approx(2.3)


def test_every_reason_has_a_cause() -> None:
    assert set(CAUSE_OF_LOSS) == set(Loss)


def test_small_setback_is_told_after_what_took_longest() -> None:
    timings = SampleTimings(preempted_s=0.01, prefill_s=0.01, decode_s=4.0)

    diagnosis = diagnose(sample_trace(timings))

    assert diagnosis.cause is Cause.WORKER
    assert diagnosis.sentence.startswith("most of the time: worker")
    assert "; preemption: it lost its row once" in diagnosis.sentence


def test_frozen_workers_silence_before_it_was_noticed_counts_too() -> None:
    diagnosis = diagnose(_lost(Loss.WORKER_FROZEN, **{names.ATTR_SILENT_S: 1.5}))

    assert diagnosis.seconds[Cause.WORKER_FROZEN] == pytest.approx(2.3 + 1.5)
    assert diagnosis.seconds[Cause.WORKER] == pytest.approx(4.0 - 1.5)


def test_killed_worker_takes_its_spans_but_not_its_share() -> None:
    whole = diagnose(_lost(Loss.WORKER_LOST))
    spans = _lost(Loss.WORKER_LOST)
    first = {next(span.span_id for span in spans if span.name == n) for n in ("prefill", "decode")}

    cut = diagnose([span for span in spans if span.span_id not in first])

    assert cut.seconds == pytest.approx(whole.seconds)


def test_choices_that_lose_their_rows_together_are_one_loss() -> None:
    spans = _lost(Loss.WORKER_LOST)
    process = _process(spans)
    lost = next(event for event in process.events if event.name == names.EVENT_PREEMPTED)
    others = []
    for choice in range(4):
        told = {**lost.attributes, names.ATTR_CHOICE: choice}
        others.append(replace(lost, time_ns=lost.time_ns + choice, attributes=told))
    events = [event for event in process.events if event is not lost]

    (fault,) = diagnose(_with(spans, replace(process, events=[*events, *others]))).faults

    assert (fault.times, fault.worker_ids) == (1, ("w1",))


def test_another_choice_that_comes_back_ends_no_loss() -> None:
    spans = _lost(Loss.WORKER_LOST, **{names.ATTR_CHOICE: 0})
    process = _process(spans)
    lost_ns = next(e.time_ns for e in process.events if e.name == names.EVENT_PREEMPTED)
    other = SpanEvent(names.EVENT_RESUMED, lost_ns + 10, {names.ATTR_CHOICE: 1})

    diagnosis = diagnose(_with(spans, replace(process, events=[*process.events, other])))

    assert diagnosis.seconds[Cause.WORKER_LOST] == pytest.approx(2.3)


@pytest.mark.parametrize(
    ("attributes", "cause"),
    [({"millrace.choice": 0}, Cause.PREEMPTION), ({"millrace.worker_id": "w"}, Cause.WORKER_LOST)],
)
def test_spans_of_before_are_read_as_they_were_meant(
    attributes: Mapping[str, Any], cause: Cause
) -> None:
    spans = _marked(sample_trace(LOST), names.EVENT_PREEMPTED, attributes)

    assert diagnose(spans).cause is cause


def _scheduler_events(spans: list[SpanRecord], *events: SpanEvent) -> list[SpanRecord]:
    first = SpanEvent(names.EVENT_FIRST_TOKEN, spans[0].start_ns + NS_PER_S // 10)
    return _with(spans, replace(spans[0], events=[first, *events]))


def _killed_scheduler(*, has_tokens: bool = True) -> list[SpanRecord]:
    """Killed after 1 s, taken over at 4 s, first token at 4.345 s; its own spans are lost."""
    spans = sample_trace(SampleTimings(decode_s=3.0))
    start_ns = spans[0].start_ns
    moved_ns = 4 * NS_PER_S - (_process(spans).start_ns - start_ns)
    late = {names.SPAN_PROCESS, names.SPAN_QUEUE_WAIT, names.SPAN_PREFILL, names.SPAN_DECODE}
    again = [_later(span, moved_ns) if span.name in late else span for span in spans]
    process = _process(again)
    told = {**process.attributes, names.ATTR_MESSAGING_DELIVERY_COUNT: 2}
    again = _with(again, replace(process, attributes=told))
    again[0] = replace(again[0], end_ns=max(span.end_ns for span in again) + 1_000_000)
    lost = SpanEvent(names.EVENT_SCHEDULER_LOST, start_ns + NS_PER_S)
    back = SpanEvent(names.EVENT_SCHEDULER_BACK, start_ns + 3 * NS_PER_S)
    # The gateway tries the new scheduler before that has the request.
    tried = replace(lost, time_ns=back.time_ns + NS_PER_S // 2)
    if not has_tokens:
        return _with(again, replace(again[0], events=[lost, back, tried]))
    old = replace(spans[-2], span_id="e" * 16, parent_id="f" * 16, end_ns=start_ns + NS_PER_S)
    return [*_scheduler_events(again, lost, back, tried), old]


def _later(span: SpanRecord, moved_ns: int) -> SpanRecord:
    events = [replace(event, time_ns=event.time_ns + moved_ns) for event in span.events]
    start_ns, end_ns = span.start_ns + moved_ns, span.end_ns + moved_ns
    return replace(span, start_ns=start_ns, end_ns=end_ns, events=events)


def test_killed_scheduler_costs_until_the_next_token() -> None:
    diagnosis = diagnose(_killed_scheduler())

    assert diagnosis.cause is Cause.SCHEDULER_LOST
    assert "scheduler lost: the stream to its scheduler broke once" in diagnosis.sentence
    assert diagnosis.seconds[Cause.SCHEDULER_LOST] == pytest.approx(3.045)
    assert diagnosis.seconds.get(Cause.QUEUE, 0.0) < 0.01


def test_request_that_was_still_waiting_waits_on_in_the_queue_of_the_next_one() -> None:
    spans = _killed_scheduler(has_tokens=False)
    queue = next(span for span in spans if span.name == names.SPAN_QUEUE_WAIT)

    diagnosis = diagnose(_with(spans, replace(queue, end_ns=queue.start_ns + NS_PER_S)))

    assert diagnosis.seconds[Cause.SCHEDULER_LOST] == pytest.approx(3.0)
    assert diagnosis.seconds[Cause.QUEUE] == pytest.approx(1.0)


def test_broken_stream_to_a_scheduler_that_goes_on_costs_until_the_next_one() -> None:
    spans = sample_trace(SampleTimings(decode_s=9.0))
    at_ns = spans[0].start_ns + 2 * NS_PER_S
    told = {names.ATTR_SILENT_S: 1.0}
    lost = SpanEvent(names.EVENT_SCHEDULER_LOST, at_ns, told)
    back = SpanEvent(names.EVENT_SCHEDULER_BACK, at_ns + NS_PER_S // 2)

    diagnosis = diagnose(_scheduler_events(spans, lost, back))

    assert diagnosis.seconds[Cause.SCHEDULER_LOST] == pytest.approx(1.5)


def test_scheduler_that_never_comes_back_costs_the_rest() -> None:
    spans = _without(
        _killed_scheduler(), *(names.SPAN_PROCESS, names.SPAN_QUEUE_WAIT, names.SPAN_PREFILL)
    )
    spans = [span for span in spans if span.name != names.SPAN_DECODE or span.span_id == "e" * 16]
    root = replace(spans[0], status="ERROR", status_message="its deadline has passed")

    diagnosis = diagnose(_with(spans, root))

    assert diagnosis.cause is Cause.SCHEDULER_LOST
    assert diagnosis.sentence.startswith("failed: ")
    assert diagnosis.seconds[Cause.SCHEDULER_LOST] == pytest.approx(root.duration_s - 1.0)


def test_several_faults_are_all_told_with_their_seconds() -> None:
    spans = _killed_scheduler()
    process = _process(spans)
    lost_ns = process.end_ns - 2 * NS_PER_S
    told = {names.ATTR_LOSS_REASON: "worker_lost", names.ATTR_WORKER_ID: "w2"}
    lost = SpanEvent(names.EVENT_PREEMPTED, lost_ns, told)
    back = SpanEvent(names.EVENT_RESUMED, lost_ns + NS_PER_S, told)
    spans = _with(spans, replace(process, events=[*process.events, lost, back]))

    diagnosis = diagnose(spans)

    assert [(fault.cause, round(fault.seconds, 1)) for fault in diagnosis.faults] == [
        (Cause.SCHEDULER_LOST, 3.0),
        (Cause.WORKER_LOST, 1.0),
    ]
    assert "broke once, and getting back took 3.0" in diagnosis.sentence
    assert "w2 went away once, and getting back took 1.00 s" in diagnosis.sentence
    assert sum(diagnosis.seconds.values()) == pytest.approx(spans[0].duration_s)
