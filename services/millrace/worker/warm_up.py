"""One token before anything listens: a worker that registers can generate and is warm."""

from __future__ import annotations

from millrace.core.errors import InternalError
from millrace.core.step import CANARY_ROW_EPOCH, StepPlan, canary_admission

from .engine_loop import StepEngine


def warm_up(engine: StepEngine) -> None:
    """Runs a canary and drops it. Raises `InternalError` where no token comes of it."""
    try:
        result = engine.execute(StepPlan(0, admissions=[canary_admission(0, 0)], chunks=[(0, 1)]))
    except Exception as exc:
        raise InternalError(f"the model cannot generate: {type(exc).__name__}: {exc}") from exc
    if [token.row_epoch for token in result.tokens] != [CANARY_ROW_EPOCH]:
        raise InternalError(f"the model cannot generate: {result.why_no_token}")
    engine.reset()
