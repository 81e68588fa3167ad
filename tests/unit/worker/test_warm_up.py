"""The token that a worker generates before it listens."""

from __future__ import annotations

import pytest

from millrace.core.errors import InternalError
from millrace.core.step import StepPlan, StepResult
from millrace.testing.model_worker import ModelWorker
from millrace.worker.warm_up import warm_up


class _BrokenWorker(ModelWorker):
    def execute(self, plan: StepPlan) -> StepResult:
        raise RuntimeError("no kernel for this device")


class _SilentWorker(ModelWorker):
    def execute(self, plan: StepPlan) -> StepResult:
        return StepResult(1, plan.plan_id)


def test_engine_is_empty_afterwards_and_has_run_a_step() -> None:
    engine = ModelWorker()
    warm_up(engine)
    assert engine.num_taken_rows == 0
    assert engine.progress == 1


@pytest.mark.parametrize(
    ("engine", "reason"),
    [(_BrokenWorker(), "RuntimeError: no kernel for this device"), (_SilentWorker(), "no token")],
)
def test_engine_that_brings_no_token_is_refused(engine: ModelWorker, reason: str) -> None:
    with pytest.raises(InternalError, match=f"the model cannot generate: {reason}"):
        warm_up(engine)
