"""A row that its worker cannot compute ends its request at once, and nobody else's."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.core.errors import InternalError
from millrace.core.step import RowError, StepResult
from millrace.testing.model_worker import BROKEN
from tests.unit.scheduler.test_scheduler_properties import CHANCES, SEEDS

# No worker samples it.
BAD = 200
NUM_REQUESTS = 16


def test_request_ends_with_the_workers_reason_and_without_a_second_try(
    simulate, make_request
) -> None:
    sim = simulate(broken_token_id=BAD)
    sim.add(make_request("bad", [1, BAD, 3], num_choices=3))
    for name in "ab":
        sim.add(make_request(name, [1, 2, 3], max_tokens=9))

    outcome = sim.step()

    ((request_id, error),) = outcome.failed
    assert (request_id, error.message, type(error)) == ("bad", BROKEN, InternalError)
    assert (outcome.dead_letters, outcome.lost_rows) == ([], [])
    sim.run()
    assert sim.failed == ["bad"]
    assert sorted(sim.finished) == ["a", "b"]
    sim.check_end()


def test_plan_behind_the_one_that_broke_a_row_changes_nothing(simulate, make_request) -> None:
    sim = simulate(broken_token_id=BAD, max_num_batched_tokens=64, block_size=16)
    sim.add(make_request("bad", [1] * 20 + [BAD] + [2] * 100))
    # Two plans on their way, each with a chunk of the row.
    assert sim.plan() is not None
    assert sim.plan() is not None
    for _ in range(2):
        sim.execute()
        sim.deliver()
    sim.run()

    assert sim.failed == ["bad"]
    sim.check_end()


def test_blocks_of_a_broken_step_are_not_found_by_others(simulate, make_request) -> None:
    # The worker fails when it reads K/V that is not right.
    sim = simulate(broken_token_id=BAD, block_size=16)
    shared = [5] * 64
    sim.add(make_request("bad", [*shared, BAD]))
    sim.run()
    sim.add(make_request("good", [*shared, 6]))
    sim.run()

    assert (sim.failed, sim.finished) == (["bad"], ["good"])
    sim.check_end()


@given(seed=SEEDS, lease_steps=st.integers(0, 2))
def test_only_broken_requests_end_whatever_runs_beside_them(
    simulate, make_request, seed, lease_steps
) -> None:
    random = Random(seed)
    sim = simulate(
        broken_token_id=BAD,
        lease_steps=lease_steps,
        max_num_batched_tokens=random.choice([64, 96, 2048]),
        num_blocks=random.choice([24, 64]),
    )
    prefix = [random.randrange(1, 9) for _ in range(80)]
    broken = set()
    num_added = 0
    while num_added < NUM_REQUESTS:
        sim.now_ns += random.randrange(2_000_000)
        move = random.choices(list(CHANCES), weights=list(CHANCES.values()))[0]
        if move == "add":
            prompt = prefix[: random.randrange(1, 80)] + [random.randrange(1, 9)]
            if random.random() < 0.4:
                prompt.insert(random.randrange(len(prompt) + 1), BAD)
                broken.add(str(num_added))
            tokens, choices = random.randrange(1, 30), random.choice([1, 1, 2])
            sim.add(
                make_request(
                    str(num_added),
                    prompt,
                    max_tokens=tokens,
                    num_choices=choices,
                    arrival=num_added,
                )
            )
            num_added += 1
        elif move == "abort":
            sim.abort(str(random.randrange(num_added + 1)))
        else:
            getattr(sim, move)("w")
    sim.run()

    assert set(sim.failed) == broken - sim.aborted
    assert len(sim.failed) == len(set(sim.failed))
    sim.check_end()


def test_worker_whose_canary_cannot_be_computed_is_of_no_use(simulate) -> None:
    sim = simulate(canary_every_s=10.0)
    plan = sim.plan()
    result = StepResult(1, plan.plan_id, row_errors=[RowError(0, "not finite")])

    with pytest.raises(InternalError, match="worker w cannot generate: not finite"):
        sim.scheduler.apply("w", result, sim.now_ns)
