"""Results are noted after they are out, and still before the plans that answer them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from millrace.core.sampling import SamplingSpec
from millrace.core.step import Admission, RowToken, StepPlan, StepResult
from millrace.core.tokens import FinishReason
from millrace.telemetry.metrics import WorkerMetrics, create_registry
from millrace.telemetry.names import ATTR_DECODE_NUM_STEPS, SPAN_DECODE, SPAN_PREFILL
from millrace.telemetry.span_record import SpanRecord
from millrace.testing.span_recorder import SpanRecorder
from millrace.worker.row_spans import RowSpans
from millrace.worker.step_metrics import StepMetrics
from millrace.worker.step_notes import StepNotes

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def recorder() -> Iterator[SpanRecorder]:
    made = SpanRecorder()
    made.install("worker")
    yield made
    made.clear()


@pytest.fixture
def metrics() -> WorkerMetrics:
    return WorkerMetrics(create_registry("worker"))


@pytest.fixture
def notes(recorder: SpanRecorder, metrics: WorkerMetrics) -> StepNotes:
    return StepNotes(RowSpans("w"), StepMetrics(metrics))


def _admission() -> Admission:
    return Admission(
        row=0,
        row_epoch=7,
        token_ids=[1, 2, 3],
        num_prompt_tokens=3,
        num_cached_tokens=0,
        choice=0,
        blocks=[0],
        sampling=SamplingSpec(),
        stop_token_ids=(),
        max_len=16,
        sync=False,
        traceparent=TRACEPARENT,
    )


def _result(step: int, finish: FinishReason = FinishReason.NONE) -> StepResult:
    return StepResult(
        step_id=step,
        plan_id=step,
        tokens=[RowToken(0, 7, 5, finish, None)],
        num_tokens=1,
        num_decode_rows=1,
        started_unix_ns=step * 1_000_000,
        step_ns=1_000,
    )


def _span(recorder: SpanRecorder, name: str) -> SpanRecord:
    return next(span for span in recorder.spans() if span.name == name)


def _num_steps(metrics: WorkerMetrics) -> float:
    (metric,) = metrics.step.collect()
    return next(sample.value for sample in metric.samples if sample.name.endswith("_count"))


def test_result_waits_for_its_turn(
    notes: StepNotes, recorder: SpanRecorder, metrics: WorkerMetrics
) -> None:
    notes.observe_plan(StepPlan(plan_id=1, admissions=[_admission()]))
    notes.add(_result(1), 1)
    assert (recorder.spans(), _num_steps(metrics)) == ([], 0)
    notes.catch_up()
    assert (_span(recorder, SPAN_PREFILL).end_ns, _num_steps(metrics)) == (1_001_000, 1)


def test_plan_that_releases_a_row_finds_its_last_token_noted(
    notes: StepNotes, recorder: SpanRecorder
) -> None:
    notes.observe_plan(StepPlan(plan_id=1, admissions=[_admission()]))
    for step in (1, 2, 3):
        notes.add(_result(step, FinishReason.LENGTH if step == 3 else FinishReason.NONE), 1)
    notes.observe_plan(StepPlan(plan_id=4, release_rows=[0]))
    decode = _span(recorder, SPAN_DECODE)
    assert (decode.end_ns, decode.attributes[ATTR_DECODE_NUM_STEPS]) == (3_001_000, 2)


def test_what_is_left_at_the_end_is_noted(
    notes: StepNotes, recorder: SpanRecorder, metrics: WorkerMetrics
) -> None:
    notes.observe_plan(StepPlan(plan_id=1, admissions=[_admission()]))
    notes.add(_result(1), 1)
    notes.end()
    assert {span.name for span in recorder.spans()} == {SPAN_PREFILL, SPAN_DECODE}
    assert _num_steps(metrics) == 1
