"""An engine whose steps go wrong for prompts that begin with certain tokens."""

from __future__ import annotations

import os
import signal
import time

from millrace.core.step import Admission, StepPlan, StepResult
from millrace.testing.model_worker import _Row
from tests.faults.sample_counts import SampleCounts
from tests.integration.stack import PacedEngine

# Prompts of `queued_request` begin with 1 to 90.
ENDS_THE_PROCESS = 91
RAISES = 92
SLOW = 93
STUCK = 94

SLOW_TICK_S = 0.05


class FaultyEngine(PacedEngine):
    """Fails whenever such a row is live, in prefill and in decode alike."""

    def __init__(
        self,
        *,
        step_s: float = 0.0,
        slow_s: float = 0.0,
        most_rows: int = 1_000,
        sampled: SampleCounts | None = None,
        **settings: int,
    ) -> None:
        super().__init__(**settings)
        self.sampled = sampled
        self.step_s = step_s
        self.slow_s = slow_s
        self.most_rows = most_rows
        self.num_failed_steps = 0
        self.num_slow_steps = 0
        self.admitted: list[list[int]] = []
        self.steps_of_seed: dict[int, list[int]] = {}

    def was_admitted(self, prompt: list[int]) -> bool:
        """True where some row began with that prompt."""
        return any(token_ids[: len(prompt)] == prompt for token_ids in self.admitted)

    def _sample(self, row: int, state: _Row, result: StepResult) -> None:
        self.steps_of_seed.setdefault(state.admission.sampling.seed, []).append(result.step_id)
        super()._sample(row, state, result)

    def _admit(self, admission: Admission) -> None:
        self.admitted.append(list(admission.token_ids))
        super()._admit(admission)

    def run_lease_step(self) -> StepResult | None:
        if self.num_live_rows:
            time.sleep(self.step_s)
        return super().run_lease_step()

    def _timed(self, result: StepResult) -> StepResult:
        if self.sampled is not None:
            for token in result.tokens:
                self.sampled.add(self._rows[token.row].admission.sampling.seed)
        return super()._timed(result)

    def _prefill(self, plan: StepPlan, result: StepResult) -> None:
        time.sleep(self.step_s)
        live = [row for row in self._rows.values() if not row.is_ended]
        first_ids = {row.admission.token_ids[0] for row in live}
        if ENDS_THE_PROCESS in first_ids:
            os.kill(os.getpid(), signal.SIGKILL)
        if RAISES in first_ids:
            self.num_failed_steps += 1
            raise RuntimeError("the forward pass failed")
        if len(live) > self.most_rows:
            self.num_failed_steps += 1
            raise MemoryError(f"{len(live)} rows")
        if {SLOW, STUCK} & first_ids and self.slow_s:
            self._dawdle(moves=SLOW in first_ids)
        super()._prefill(plan, result)

    def _dawdle(self, *, moves: bool) -> None:
        end_s, self.slow_s = time.monotonic() + self.slow_s, 0.0
        self.num_slow_steps += 1
        while time.monotonic() < end_s:
            time.sleep(SLOW_TICK_S)
            self.progress += moves
