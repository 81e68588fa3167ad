from __future__ import annotations

from collections import Counter

import pytest

from millrace.scheduler.policy import SchedulerPolicy
from millrace.testing.model_worker import ModelWorker


def pair(simulation, *, policy=None, **worker):
    workers = {name: ModelWorker(**{"num_blocks": 200, **worker}) for name in ("v", "w")}
    return simulation(policy or SchedulerPolicy(), workers)


def admissions(sim):
    return Counter(
        {name: sum(len(plan.admissions) for plan in link.sent) for name, link in sim.links.items()}
    )


@pytest.mark.parametrize("prompt_len", [2, 30, 200])
@pytest.mark.parametrize("num_requests", [10, 60])
def test_a_burst_is_shared_by_equal_workers(simulation, make_request, prompt_len, num_requests):
    sim = pair(simulation, max_num_seqs=64)
    for i in range(num_requests):
        prompt = [i + 1] + [90] * (prompt_len - 1)
        sim.add(make_request(str(i), prompt, max_tokens=10, arrival=i))

    sim.run()

    sim.check_end()
    assert min(admissions(sim).values()) >= 0.3 * num_requests


@pytest.mark.parametrize("gap", [1, 3, 40])
def test_a_stream_of_requests_is_shared_by_equal_workers(simulation, make_request, gap):
    sim = pair(simulation)
    for i in range(60):
        sim.add(make_request(str(i), [i + 1] * 20, max_tokens=12, arrival=i))
        for _ in range(gap):
            for name in sim.links:
                sim.step(name)

    sim.run()

    sim.check_end()
    assert min(admissions(sim).values()) >= 0.3 * 60


def test_both_workers_start_with_the_first_plans_of_a_burst(simulation, make_request):
    sim = pair(simulation, max_num_seqs=32)
    for i in range(20):
        sim.add(make_request(str(i), [i + 1] * 20, arrival=i))

    first, second = sim.plan("v"), sim.plan("w")

    assert len(first.admissions) + len(second.admissions) == 20
    assert 8 <= len(first.admissions) <= 12


def test_a_request_goes_to_the_worker_that_has_its_prefix(simulation, make_request):
    sim = pair(simulation)
    shared = list(range(1, 97)) + list(range(1, 90))
    sim.add(make_request("a", shared, max_tokens=1))
    sim.run()
    (home,) = (name for name, link in sim.links.items() if admissions(sim)[name])
    other = "v" if home == "w" else "w"

    sim.add(make_request("b", [*shared, 1, 2], max_tokens=1))
    assert sim.plan(other) is None
    plan = sim.plan(home)

    assert plan.admissions[0].num_cached_tokens == 176
    sim.run()
    sim.check_end()


def test_a_cached_prefix_does_not_outweigh_a_long_line(simulation, make_request):
    sim = pair(simulation, max_num_seqs=64, policy=SchedulerPolicy(max_num_batched_tokens=64))
    shared = [1] * 48
    sim.add(make_request("a", shared, max_tokens=1))
    sim.run()
    (home,) = (name for name in sim.links if admissions(sim)[name])
    other = "v" if home == "w" else "w"
    for i in range(8):
        sim.add(make_request(f"new{i}", [i + 2] * 200, max_tokens=1, arrival=i))
    sim.plan(home)
    sim.plan(other)
    sim.scheduler.abort("nothing")

    for i in range(8):
        sim.add(make_request(f"old{i}", [*shared, 3, i], max_tokens=1, arrival=10 + i))
    sim.run()

    sim.check_end()
    assert min(admissions(sim).values()) >= 4


def test_no_worker_idles_while_requests_wait(simulation, make_request):
    sim = pair(simulation, max_num_seqs=2)
    for i in range(30):
        sim.add(make_request(str(i), [1] * 100 + [i + 1], max_tokens=7, arrival=i))

    for _ in range(300):
        sim.now_ns += 1_000_000
        planned = {name: sim.plan(name) is not None for name in sim.links}
        waiting = sim.scheduler.stats().num_waiting
        for name in sim.links:
            worker = sim.mirror(name)
            assert planned[name] or not waiting or worker.num_live_rows or worker.rows
        for name in sim.links:
            sim.execute(name)
            sim.deliver(name)

    sim.check_end()


def test_a_request_left_for_a_worker_that_never_asks_is_taken_by_the_other(
    simulation, make_request
):
    sim = pair(simulation, policy=SchedulerPolicy(placement_patience_ms=250.0))
    prompt = list(range(1, 97)) + list(range(1, 90))
    sim.add(make_request("a", prompt, max_tokens=1))
    sim.run()
    (home,) = (name for name in sim.links if admissions(sim)[name])
    other = "v" if home == "w" else "w"
    sim.add(make_request("b", prompt, max_tokens=1))

    assert sim.plan(other) is None
    sim.now_ns += 251_000_000

    assert sim.plan(other).admissions


def test_a_worker_that_cannot_hold_a_request_leaves_it_alone(simulation, make_request):
    workers = {"small": ModelWorker(num_blocks=4), "large": ModelWorker(num_blocks=64)}
    sim = simulation(SchedulerPolicy(), workers)
    sim.add(make_request("a", [1] * 100, max_tokens=3))

    assert sim.plan("small") is None
    sim.run()

    assert admissions(sim) == {"small": 0, "large": 1}
    assert sim.finished == ["a"]
