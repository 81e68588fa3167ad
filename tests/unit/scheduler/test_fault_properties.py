"""Random moves with dying workers, failing steps and deadlines: right tokens, balanced books."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from millrace.core.dead_letter import DeadLetter
from millrace.core.loss import Loss
from millrace.core.step import StepPlan, StepResult
from millrace.scheduler.suspicion import Fault
from millrace.testing.model_worker import ModelWorker
from tests.unit.scheduler.test_scheduler_properties import (
    CHANCES,
    SEEDS,
    random_policy,
    random_request,
)

NUM_REQUESTS = 14
# A third one may end a request that was there each time, and runs alone by then.
MOST_DEADLY = 2
OUT_OF_MEMORY = "MemoryError: no room for the step"
BROKEN = "RuntimeError: the forward pass failed"


class BreakableWorker(ModelWorker):
    """Fails the next step that more than `least_rows` rows take part in."""

    failure = ""
    least_rows = 0

    def execute(self, plan: StepPlan) -> StepResult:
        try:
            return super().execute(plan)
        except _StepFails as failed:
            return StepResult(
                step_id=0, plan_id=plan.plan_id, failed_rows=self.live_rows, failure=str(failed)
            )

    def _prefill(self, plan: StepPlan, result: StepResult) -> None:
        if self.failure and self.num_live_rows > self.least_rows:
            failure, self.failure = self.failure, ""
            raise _StepFails(failure)
        super()._prefill(plan, result)


class _StepFails(Exception):
    pass


class Faults:
    """The moves that go wrong."""

    def __init__(self, random: Random, sim) -> None:
        self.num_deadly = 0
        self._random = random
        self._sim = sim

    def die(self, worker_id: str) -> None:
        """With its rows, and with what is on its way to it and from it; comes back empty."""
        if self.num_deadly < MOST_DEADLY:
            self.num_deadly += 1
            self._leave(worker_id, Loss.WORKER_LOST)

    def end(self, worker_id: str) -> None:
        self._leave(worker_id, Loss.WORKER_LEFT)

    def break_step(self, worker_id: str) -> None:
        if self.num_deadly < MOST_DEADLY:
            self.num_deadly += 1
            worker = self._sim.links[worker_id].worker
            worker.failure, worker.least_rows = BROKEN, 0

    def run_out(self, worker_id: str) -> None:
        """Of memory; one row alone always fits."""
        worker = self._sim.links[worker_id].worker
        if not worker.failure:
            worker.failure, worker.least_rows = OUT_OF_MEMORY, 1

    def expire(self, worker_id: str) -> None:
        ended = self._sim.scheduler.expire(self._sim.now_ns // 1_000_000)
        self._sim.aborted.update(ended)

    def _leave(self, worker_id: str, loss: Loss) -> None:
        worker = self._sim.links.pop(worker_id).worker
        self._sim._take(self._sim.scheduler.remove_worker(worker_id, loss))
        worker.reset()
        self._sim.add_worker(worker_id, worker)


FAULTY_CHANCES = {"die": 0.3, "end": 0.2, "break_step": 0.3, "run_out": 0.3, "expire": 0.5}


def _play(random, sim, make_request, faults) -> None:
    chances = {**CHANCES, **FAULTY_CHANCES}
    num_added = 0
    while num_added < NUM_REQUESTS:
        sim.now_ns += random.randrange(2_000_000)
        worker_id = random.choice(list(sim.links))
        move = random.choices(list(chances), weights=list(chances.values()))[0]
        if move == "add":
            request = random_request(random, make_request, sim, str(num_added), 60)
            deadline = sim.now_ns // 1_000_000 + random.randrange(20, 200)
            has_deadline = random.random() < 0.3
            sim.add(replace(request, deadline_unix_ms=deadline) if has_deadline else request)
            num_added += 1
        elif move == "abort":
            sim.abort(str(random.randrange(num_added + 1)))
        elif move in FAULTY_CHANCES:
            getattr(faults, move)(worker_id)
        else:
            getattr(sim, move)(worker_id)


@given(seed=SEEDS, lease_steps=st.integers(0, 2))
def test_tokens_are_right_and_books_balance_whatever_fails(
    simulation, make_request, seed, lease_steps
):
    random = Random(seed)
    workers = {
        str(i): BreakableWorker(
            num_blocks=random.choice((16, 40)), block_size=8, max_num_seqs=4, max_model_len=100
        )
        for i in range(2)
    }
    sim = simulation(random_policy(random, lease_steps), workers)
    faults = Faults(random, sim)

    _play(random, sim, make_request, faults)
    for link in sim.links.values():
        link.worker.failure = ""
    sim.run()

    sim.check_end()
    assert not sim.failed, "nobody was there at three faults"


@given(seed=SEEDS)
def test_no_request_ends_for_less_than_three_faults(simulation, make_request, seed):
    random = Random(seed)
    worker = BreakableWorker(num_blocks=40, block_size=8, max_num_seqs=4, max_model_len=100)
    sim = simulation(random_policy(random, random.randrange(3)), {"w": worker})
    for number in range(6):
        sim.add(random_request(random, make_request, sim, str(number), 60))
    letters: list[DeadLetter] = []
    for _ in range(60):
        for move in random.choices(("plan", "execute", "deliver"), k=6):
            outcome = getattr(sim, move)("w")
            letters += outcome.dead_letters if move == "deliver" and outcome else []
        worker.failure = random.choice(("", BROKEN))
    worker.failure = ""
    sim.run()

    sim.check_end()
    assert sorted(letter.request_id for letter in letters) == sorted(sim.failed)
    assert all(letter.num_attempts >= 3 for letter in letters)
    assert {letter.cause for letter in letters} <= {Fault.FAILED_STEP.value}
