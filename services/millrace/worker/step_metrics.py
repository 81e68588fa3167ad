"""From step results to the worker's metrics."""

from __future__ import annotations

from millrace.core.step import CANARY_ROW_EPOCH, StepResult
from millrace.telemetry.metrics import WorkerMetrics

NS_PER_S = 1e9


class StepMetrics:
    """Counts the steps of one session."""

    def __init__(self, metrics: WorkerMetrics) -> None:
        self._metrics = metrics
        self._last_plan_id = 0

    def observe(self, result: StepResult, num_live_rows: int) -> None:
        """Counts one step; a plan id seen before marks a step on the lease.

        Left out: canaries, and steps that only give rows back.
        """
        metrics = self._metrics
        is_canary = any(token.row_epoch == CANARY_ROW_EPOCH for token in result.tokens)
        if is_canary or not (result.num_tokens or result.failure):
            return
        metrics.step.observe(result.step_ns / NS_PER_S)
        metrics.forward.observe(result.forward_ns / NS_PER_S)
        metrics.sample.observe(result.sample_ns / NS_PER_S)
        metrics.tokens.labels("decode").inc(result.num_decode_rows)
        metrics.tokens.labels("prefill").inc(result.num_tokens - result.num_decode_rows)
        metrics.starved_rows.inc(len(result.starved_rows))
        if result.failure:
            metrics.failed_steps.inc()
        if result.plan_id == self._last_plan_id:
            metrics.lease_steps.inc()
        self._last_plan_id = result.plan_id
