"""The `prefill` and `decode` spans of every row, drawn from plans and results."""

from __future__ import annotations

import time
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.trace import Span

from millrace.core.step import Admission, StepPlan, StepResult
from millrace.telemetry.names import (
    ATTR_CHOICE,
    ATTR_DECODE_NUM_STARVED,
    ATTR_DECODE_NUM_STEPS,
    ATTR_NUM_CACHED_TOKENS,
    ATTR_PREFILL_NUM_CHUNKS,
    ATTR_PREFILL_NUM_TOKENS,
    ATTR_WORKER_ID,
    SPAN_DECODE,
    SPAN_PREFILL,
)
from millrace.telemetry.propagation import context_from_traceparent


@dataclass(slots=True)
class _Row:
    admission: Admission
    span: Span
    num_chunks: int = 0
    num_steps: int = 0
    num_starved: int = 0
    is_decoding: bool = False


class RowSpans:
    """Follows the rows of one session. A row without a traceparent costs nothing."""

    def __init__(self, worker_id: str) -> None:
        self._worker_id = worker_id
        self._tracer = trace.get_tracer(__name__)
        self._rows: dict[int, _Row] = {}

    def observe_plan(self, plan: StepPlan) -> None:
        """Begins `prefill` at the plan's arrival, so that waiting for the engine is part of it."""
        for row_number in plan.release_rows:
            self._end(row_number, time.time_ns())
        for admission in plan.admissions:
            if admission.traceparent:
                span = self._start(SPAN_PREFILL, admission, time.time_ns())
                self._rows[admission.row] = _Row(admission, span)
        for row_number, _ in plan.chunks:
            if row := self._rows.get(row_number):
                row.num_chunks += 1

    def observe_result(self, result: StepResult) -> None:
        """Ends `prefill` and begins `decode` at a row's first token; ends it at its last."""
        ended_unix_ns = result.started_unix_ns + result.step_ns
        for row_number in result.starved_rows:
            if row := self._rows.get(row_number):
                row.num_starved += 1
        for token in result.tokens:
            row = self._rows.get(token.row)
            if row is None or row.admission.row_epoch != token.row_epoch:
                continue
            if row.is_decoding:
                row.num_steps += 1
            else:
                self._turn_to_decode(row, ended_unix_ns)
            if token.finish:
                self._end(token.row, ended_unix_ns)

    def end_all(self) -> None:
        """Ends every open span: the session is over."""
        for row in list(self._rows):
            self._end(row, time.time_ns())

    def _start(self, name: str, admission: Admission, started_unix_ns: int) -> Span:
        return self._tracer.start_span(
            name,
            context=context_from_traceparent(admission.traceparent),
            start_time=started_unix_ns,
            attributes={ATTR_WORKER_ID: self._worker_id, ATTR_CHOICE: admission.choice},
        )

    def _turn_to_decode(self, row: _Row, ended_unix_ns: int) -> None:
        self._end_prefill(row, ended_unix_ns)
        row.span = self._start(SPAN_DECODE, row.admission, ended_unix_ns)
        row.is_decoding = True

    def _end_prefill(self, row: _Row, ended_unix_ns: int) -> None:
        admission = row.admission
        num_tokens = len(admission.token_ids) - admission.num_cached_tokens
        row.span.set_attribute(ATTR_PREFILL_NUM_TOKENS, num_tokens)
        row.span.set_attribute(ATTR_NUM_CACHED_TOKENS, admission.num_cached_tokens)
        row.span.set_attribute(ATTR_PREFILL_NUM_CHUNKS, row.num_chunks)
        row.span.end(ended_unix_ns)

    def _end(self, row_number: int, ended_unix_ns: int) -> None:
        row = self._rows.pop(row_number, None)
        if row is None:
            return
        if not row.is_decoding:
            self._end_prefill(row, ended_unix_ns)
            return
        row.span.set_attribute(ATTR_DECODE_NUM_STEPS, row.num_steps)
        row.span.set_attribute(ATTR_DECODE_NUM_STARVED, row.num_starved)
        row.span.end(ended_unix_ns)
