"""Canaries: a worker takes requests once it has generated a token, and proves it while idle."""

from __future__ import annotations

import pytest

from millrace.core.errors import InternalError
from millrace.core.loss import Loss
from millrace.core.step import CANARY_ROW_EPOCH, StepPlan, StepResult
from millrace.testing.model_worker import ModelWorker

EVERY_S = 5.0
NS_PER_S = 1_000_000_000


def _is_canary(plan: StepPlan | None) -> bool:
    return plan is not None and [each.row_epoch for each in plan.admissions] == [CANARY_ROW_EPOCH]


def _num_canaries(sim) -> int:
    return sum(_is_canary(plan) for plan in sim.links["w"].sent)


@pytest.fixture
def sim(simulate):
    return simulate(canary_every_s=EVERY_S, max_num_seqs=2, num_blocks=8)


def test_worker_counts_and_takes_requests_only_after_its_first_canary(sim, make_request) -> None:
    sim.add(make_request("a"))
    assert sim.scheduler.stats().num_workers == 0
    assert _is_canary(sim.plan())
    assert sim.plan() is None, "nothing is admitted behind a canary that has not sung"
    sim.execute()
    sim.deliver()
    assert sim.scheduler.stats().num_workers == 1
    sim.run()
    assert sim.finished == ["a"]
    assert _num_canaries(sim) == 1


def test_idle_worker_sings_once_in_every_interval(sim) -> None:
    for _ in range(100):
        sim.now_ns += NS_PER_S // 2
        for _ in range(3):
            sim.step()
    # 50 s, and the one that proved it.
    assert 10 <= _num_canaries(sim) <= 11
    worker = sim.links["w"].worker
    assert worker.num_taken_rows == 0
    assert sim.mirror().blocks.num_used == 0
    assert sim.scheduler.stats().num_finished == 0, "no request has been there"


def test_worker_that_answers_requests_owes_nothing(sim, make_request) -> None:
    sim.run()
    for number in range(20):
        sim.now_ns += NS_PER_S
        sim.add(make_request(str(number)))
        sim.run()
    assert _num_canaries(sim) == 1


def test_canary_under_way_costs_no_request_its_tokens(sim, make_request) -> None:
    sim.run()
    sim.now_ns += round(EVERY_S * NS_PER_S)
    assert _is_canary(sim.plan())
    for name in "abc":
        sim.add(make_request(name, max_tokens=9))
    sim.run()
    sim.now_ns += NS_PER_S
    sim.run()
    sim.check_end()


@pytest.mark.parametrize("failure", ["RuntimeError: device lost", "MemoryError: no room", ""])
def test_worker_whose_canary_brings_no_token_is_of_no_use(sim, failure: str) -> None:
    plan = sim.plan()
    assert plan is not None
    result = StepResult(1, plan.plan_id, failed_rows=[0] if failure else [], failure=failure)
    with pytest.raises(InternalError, match=f"cannot generate: {failure or 'no token came'}"):
        sim.scheduler.apply("w", result, sim.now_ns)


def test_lost_canary_is_nobodys_fault(sim, make_request) -> None:
    sim.run()
    sim.now_ns += round(EVERY_S * NS_PER_S)
    assert _is_canary(sim.plan())
    sim.add(make_request("a"))
    sim.plan()
    outcome = sim.scheduler.remove_worker("w", Loss.WORKER_LOST)
    assert (outcome.requeued, outcome.dead_letters) == (["a"], [])
    sim.add_worker("w", ModelWorker())
    sim.run()
    assert sim.finished == ["a"]


def test_no_canaries_where_none_are_asked_for(simulate) -> None:
    sim = simulate()
    sim.now_ns += 1000 * NS_PER_S
    assert sim.plan() is None
    assert sim.scheduler.stats().num_workers == 1
