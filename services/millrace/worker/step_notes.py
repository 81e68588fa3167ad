"""What spans and metrics are told of a session's steps, after the results are out."""

from __future__ import annotations

from collections import deque

from millrace.core.step import StepPlan, StepResult

from .row_spans import RowSpans
from .step_metrics import StepMetrics


class StepNotes:
    """Keeps results until `catch_up`: nobody who waits for tokens waits for spans and metrics.

    Plans and results are noted in the order in which they came.
    """

    def __init__(self, spans: RowSpans, metrics: StepMetrics) -> None:
        self._spans = spans
        self._metrics = metrics
        self._results: deque[tuple[StepResult, int]] = deque()

    def observe_plan(self, plan: StepPlan) -> None:
        """Notes a plan, and the results before it."""
        self.catch_up()
        self._spans.observe_plan(plan)

    def add(self, result: StepResult, num_live_rows: int) -> None:
        """Keeps a result for later."""
        self._results.append((result, num_live_rows))

    def catch_up(self) -> None:
        """Notes what was kept."""
        while self._results:
            result, num_live_rows = self._results.popleft()
            self._spans.observe_result(result)
            self._metrics.observe(result, num_live_rows)

    def end(self) -> None:
        """The session is over; every open span ends."""
        self.catch_up()
        self._spans.end_all()
