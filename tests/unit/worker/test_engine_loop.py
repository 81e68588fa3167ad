"""The engine's thread: plans in order, leases, owners, failures."""

from __future__ import annotations

import queue
import threading

import pytest

from millrace.core.step import RowToken, StepPlan, StepResult
from millrace.worker.engine_loop import EngineLoop

TIMEOUT_S = 5.0


class _Engine:
    """Counts what it is asked to do; `gate` holds every step until it is open."""

    def __init__(self, runnable_lease_steps: int = 1000) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.num_resets = 0
        self.live_rows = [3]
        self.progress = 0
        self.runnable_lease_steps = runnable_lease_steps
        self._step_id = 0
        self._plan_id = 0

    def execute(self, plan: StepPlan) -> StepResult:
        self.entered.set()
        assert self.gate.wait(TIMEOUT_S)
        if plan.hold_rows:
            raise MemoryError("no room for the step")
        self._plan_id = plan.plan_id
        return self._result()

    def run_lease_step(self) -> StepResult | None:
        if self.runnable_lease_steps == 0:
            return None
        self.runnable_lease_steps -= 1
        return self._result()

    def reset(self) -> None:
        self.num_resets += 1

    def _result(self) -> StepResult:
        self._step_id += 1
        tokens = [RowToken(row=3, row_epoch=1, token_id=9)]
        return StepResult(step_id=self._step_id, plan_id=self._plan_id, tokens=tokens)


@pytest.fixture
def results() -> queue.Queue[StepResult]:
    return queue.Queue()


def _started(engine: _Engine) -> EngineLoop:
    loop = EngineLoop(engine)
    loop.start()
    return loop


def _take(results: queue.Queue[StepResult], count: int) -> list[StepResult]:
    return [results.get(timeout=TIMEOUT_S) for _ in range(count)]


def test_every_plan_yields_one_result_in_order(results: queue.Queue[StepResult]) -> None:
    loop = _started(_Engine())
    session = loop.open_session(results.put)
    for plan_id in (1, 2, 3):
        loop.submit(session, StepPlan(plan_id))
    assert [result.plan_id for result in _take(results, 3)] == [1, 2, 3]
    loop.stop()


def test_lease_adds_steps_only_while_no_plan_waits(results: queue.Queue[StepResult]) -> None:
    engine = _Engine()
    engine.gate.clear()
    loop = _started(engine)
    session = loop.open_session(results.put)
    loop.submit(session, StepPlan(1, lease_steps=2))
    loop.submit(session, StepPlan(2, lease_steps=2))
    engine.gate.set()
    assert [result.plan_id for result in _take(results, 4)] == [1, 2, 2, 2]
    loop.stop()
    assert results.empty()


def test_lease_ends_when_no_row_can_run(results: queue.Queue[StepResult]) -> None:
    loop = _started(_Engine(runnable_lease_steps=1))
    session = loop.open_session(results.put)
    loop.submit(session, StepPlan(1, lease_steps=5))
    assert len(_take(results, 2)) == 2
    loop.submit(session, StepPlan(2))
    assert _take(results, 1)[0].plan_id == 2
    loop.stop()


def test_new_owner_finds_an_empty_engine_and_the_old_one_hears_no_more(
    results: queue.Queue[StepResult],
) -> None:
    engine = _Engine()
    engine.gate.clear()
    loop = _started(engine)
    old: queue.Queue[StepResult] = queue.Queue()
    old_session = loop.open_session(old.put)
    loop.submit(old_session, StepPlan(1))
    session = loop.open_session(results.put)
    loop.submit(session, StepPlan(7))
    loop.submit(old_session, StepPlan(2))
    engine.gate.set()
    assert _take(results, 1)[0].plan_id == 7
    loop.stop()
    assert old.empty()
    assert engine.num_resets >= 1


def test_token_that_its_owner_did_not_live_to_see_counts_as_sampled(
    results: queue.Queue[StepResult],
) -> None:
    engine = _Engine()
    engine.gate.clear()
    loop = _started(engine)
    session = loop.open_session(results.put)
    loop.submit(session, StepPlan(1))
    assert engine.entered.wait(TIMEOUT_S)
    loop.close_session(session)
    engine.gate.set()
    loop.stop()
    assert results.empty()
    assert loop.num_sampled_tokens == 1


def test_failing_step_is_reported_and_the_loop_goes_on(results: queue.Queue[StepResult]) -> None:
    loop = _started(_Engine())
    session = loop.open_session(results.put)
    loop.submit(session, StepPlan(1, hold_rows=[0], lease_steps=2))
    loop.submit(session, StepPlan(2))
    failed, fine = _take(results, 2)
    assert (failed.plan_id, failed.failure) == (1, "MemoryError: no room for the step")
    assert failed.failed_rows == [3]
    assert (fine.plan_id, fine.failure) == (2, "")
    loop.stop()
