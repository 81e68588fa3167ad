"""The worker's own process around an engine that breaks in the way named by the first argument."""

from __future__ import annotations

import os
import signal
import sys
import time

from millrace.core.step import StepPlan, StepResult
from millrace.testing.model_worker import ModelWorker
from millrace.worker import __main__ as worker_main

# A prompt that begins with it breaks the engine.
BREAKS = 96
FAILING_RESET = "failing-reset"
HANGING_STEP = "hanging-step"
STOPPING_FIRST_STEP = "stopping-first-step"


class BrokenEngine(ModelWorker):
    """Whole until a row begins with `BREAKS`; with `STOPPING_FIRST_STEP` it stops in its first."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._is_broken = False
        super().__init__()

    def execute(self, plan: StepPlan) -> StepResult:
        if self._kind == STOPPING_FIRST_STEP and not self._is_broken:
            self._is_broken = True
            os.kill(os.getpid(), signal.SIGSTOP)
        self._is_broken |= any(each.token_ids[0] == BREAKS for each in plan.admissions)
        if self._kind == HANGING_STEP and self._is_broken:
            time.sleep(600)
        return super().execute(plan)

    def reset(self) -> None:
        if self._kind == FAILING_RESET and self._is_broken:
            raise RuntimeError("the device is lost")
        super().reset()


def main() -> None:
    kind = sys.argv.pop(1)
    setattr(worker_main, "load_engine", lambda _: BrokenEngine(kind))  # noqa: B010
    worker_main.main()


if __name__ == "__main__":
    main()
