"""Failed steps and dead workers: who runs again, who runs alone, who ends."""

from __future__ import annotations

import pytest

from millrace.core.errors import InternalError
from millrace.core.loss import Loss
from millrace.core.step import StepPlan, StepResult
from millrace.scheduler.step_limits import RECOVERY_STEPS, StepLimits, is_out_of_memory
from millrace.testing.model_worker import ModelWorker

POISON = 9


class _FailingWorker(ModelWorker):
    """Fails whole steps: those with more rows than `max_rows`, or with a poisoned prompt."""

    def __init__(self, *, max_rows: int = 1000, failure: str = "RuntimeError: no", **settings):
        super().__init__(**settings)
        self.max_rows = max_rows
        self.failure = failure
        self.num_failed_steps = 0

    def execute(self, plan: StepPlan) -> StepResult:
        try:
            return super().execute(plan)
        except _StepFails:
            self.num_failed_steps += 1
            return StepResult(
                step_id=0, plan_id=plan.plan_id, failed_rows=self.live_rows, failure=self.failure
            )

    def _prefill(self, plan: StepPlan, result: StepResult) -> None:
        self._fail_if_due()
        super()._prefill(plan, result)

    def _fail_if_due(self) -> None:
        rows = [row for row in self._rows.values() if not row.is_ended]
        if len(rows) > self.max_rows or any(POISON in row.admission.token_ids[:1] for row in rows):
            raise _StepFails


class _StepFails(Exception):
    pass


def test_failing_step_takes_only_the_guilty_request_with_it(simulate, make_request, simulation):
    sim = simulation(simulate().policy, {"w": _FailingWorker()})
    for i in range(5):
        sim.add(make_request(str(i), [i + 1] * 40, max_tokens=30, arrival=i))
    for _ in range(6):
        sim.step()
    sim.add(make_request("bad", [POISON, 2, 3], arrival=9))
    sim.run()

    assert sim.failed == ["bad"]
    assert sorted(sim.finished) == ["0", "1", "2", "3", "4"]
    assert sim.links["w"].worker.num_failed_steps <= 4
    sim.check_end()


def test_plan_behind_a_failed_one_counts_the_same_rows_once(simulate, make_request, simulation):
    sim = simulation(simulate().policy, {"w": _FailingWorker()})
    sim.add(make_request("bad", [POISON] * 200))
    # Two plans on their way, both of which fail.
    assert sim.plan("w") is not None
    assert sim.plan("w") is not None
    for _ in range(2):
        sim.execute("w")
        sim.deliver("w")
    (request,) = sim.scheduler._requests.values()
    assert request.suspicion.num_failed_steps == 1


def test_blocks_of_a_failed_step_are_not_found_by_others(simulate, make_request, simulation):
    # The worker fails when it reads K/V that was never computed.
    sim = simulation(simulate().policy, {"w": _FailingWorker(max_rows=1)})
    sim.links["w"].worker.failure = "MemoryError: full"
    for i in range(4):
        sim.add(make_request(str(i), [1] * 64, arrival=i))
    sim.run()
    sim.check_end()
    assert sim.failed == []


def test_out_of_memory_halves_the_rows_until_the_steps_fit(simulate, make_request, simulation):
    worker = _FailingWorker(max_rows=2, failure="OutOfMemoryError: 3 GiB")
    sim = simulation(simulate().policy, {"w": worker})
    for i in range(8):
        sim.add(make_request(str(i), [i + 1] * 20, max_tokens=8, arrival=i))
    sim.run()

    sim.check_end()
    assert sim.failed == []
    assert sim.mirror("w").limits.max_rows <= 2
    assert worker.num_failed_steps <= 4


def test_request_that_never_fits_ends_and_the_others_do_not(simulate, make_request, simulation):
    worker = _FailingWorker(failure="MemoryError: full")
    sim = simulation(simulate().policy, {"w": worker})
    for i in range(6):
        sim.add(make_request(str(i), [i + 1] * 20, max_tokens=8, arrival=i))
    sim.add(make_request("bad", [POISON] * 100, arrival=3))
    sim.run()

    assert sim.failed == ["bad"]
    assert len(sim.finished) == 6
    sim.check_end()


def test_limits_grow_back_after_steps_that_fit() -> None:
    limits = StepLimits(8, 2048)
    assert limits.shrink(8, 512)
    assert (limits.max_rows, limits.max_prefill_tokens) == (4, 256)
    for _ in range(RECOVERY_STEPS):
        limits.note_good_step()
    assert (limits.max_rows, limits.max_prefill_tokens) == (8, 512)
    assert not limits.shrink(1, 32)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        ("MemoryError: no room", True),
        ("OutOfMemoryError: CUDA out of memory", True),
        ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory", True),
        ("RuntimeError: shape mismatch", False),
        ("ValueError: MemoryError", False),
    ],
)
def test_out_of_memory_is_told_by_the_type(failure: str, expected: bool) -> None:
    assert is_out_of_memory(failure) is expected


def _die(sim, worker_id: str):
    """The worker dies with its rows and comes back empty."""
    worker = sim.links[worker_id].worker
    outcome = sim.scheduler.remove_worker(worker_id, Loss.WORKER_LOST)
    sim._take(outcome)
    del sim.links[worker_id]
    worker.reset()
    sim.add_worker(worker_id, worker)
    return outcome


def test_request_at_two_deaths_runs_alone_and_ends_at_the_third(simulate, make_request):
    sim = simulate()
    for i in range(4):
        sim.add(make_request(str(i), [i + 1] * 20, max_tokens=9, arrival=i))
    outcomes = []
    for _ in range(200):
        sim.step()
        # Request 0 takes its worker down whenever it has run a step, whoever is with it.
        if "0" in sim.scheduler.members("w"):
            outcomes.append(_die(sim, "w"))
    ((request_id, error),) = outcomes[-1].failed
    assert (request_id, type(error)) == ("0", InternalError)
    assert error.message == "the request ended 3 workers, the last one alone"
    assert [len(outcome.requeued) for outcome in outcomes] == [4, 4, 0]
    assert outcomes[-1].dead_letters[0].cause == "worker death"
    sim.run()
    sim.check_end()
    assert sorted(sim.finished) == ["1", "2", "3"]


def test_orderly_end_counts_against_nobody(simulate, make_request):
    sim = simulate()
    sim.add(make_request("0", [1] * 20, max_tokens=30))
    for _ in range(5):
        sim.step()
        worker = sim.links["w"].worker
        sim.remove_worker("w")
        worker.reset()
        sim.add_worker("w", worker)
    sim.run()
    sim.check_end()
    assert sim.finished == ["0"]
