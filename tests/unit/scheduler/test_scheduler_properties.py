"""Whatever happens in whatever order: right tokens, balanced books, bounded steps."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.core.request import Priority
from millrace.core.sampling import SamplingSpec
from millrace.scheduler.policy import SchedulerPolicy
from millrace.testing.model_worker import ModelWorker

SEEDS = st.integers(min_value=0, max_value=2**32 - 1)


def random_prompt(random, max_len):
    """Often one of few beginnings, so that prefixes are shared."""
    shared = [random.choice((3, 5))] * random.choice((0, 0, 8, 24, 40))
    tail = [random.randrange(1, 97) for _ in range(random.randint(1, 30))]
    return (shared + tail)[:max_len]


def follow_up(random, sim, max_len):
    """The next turn of a conversation: what was said before, and more."""
    before = [key for key, finish in sim.finishes.items() if finish]
    if not before or random.random() < 0.6:
        return None
    request_id, choice = random.choice(before)
    said = sim.requests[request_id].prompt_token_ids + sim.outputs[request_id, choice]
    return [*said, *(random.randrange(1, 97) for _ in range(random.randint(0, 8)))][:max_len]


def random_request(random, make_request, sim, name, max_prompt):
    sampling = SamplingSpec(
        temperature=random.choice((0.0, 1.0)),
        seed=random.randrange(100),
        min_tokens=random.choice((0, 0, 3)),
    )
    return make_request(
        name,
        follow_up(random, sim, max_prompt) or random_prompt(random, max_prompt),
        max_tokens=random.choice((1, 2, 7, 20, 60)),
        num_choices=random.choice((1, 1, 1, 3)),
        priority=random.choice(list(Priority)),
        tenant=random.choice(("", "t")),
        arrival=sim.now_ns - random.randrange(10),
        stop=random.choice(((), (0,), tuple(range(8)))),
        sampling=sampling,
    )


def random_worker(random, num_blocks, block_size):
    return ModelWorker(
        num_blocks=num_blocks,
        block_size=block_size,
        max_num_seqs=random.choice((1, 3, 6)),
        max_model_len=random.choice((64, 100)) if num_blocks * block_size >= 100 else 64,
    )


def random_policy(random, lease_steps):
    return SchedulerPolicy(
        max_num_batched_tokens=random.choice((64, 96, 512)),
        target_itl_ms=random.choice((1.0, 12.0, 1000.0)),
        max_itl_stretch=random.choice((1.0, 2.0)),
        lease_steps=lease_steps,
        min_awaited_prefix_tokens=random.choice((8, 128)),
        ageing_share=random.choice((2, 8)),
        bypass_window=random.choice((1, 4)),
        max_bypasses=random.choice((0, 2, 8)),
    )


def drive(random, sim, make_request, num_requests, chances, max_prompt=60):
    """Random moves until all requests are in; then until all is done."""
    num_added = 0
    while num_added < num_requests:
        sim.now_ns += random.randrange(2_000_000)
        worker_id = random.choice(list(sim.links))
        move = random.choices(list(chances), weights=list(chances.values()))[0]
        if move == "add":
            sim.add(random_request(random, make_request, sim, str(num_added), max_prompt))
            num_added += 1
        elif move == "abort":
            sim.abort(str(random.randrange(num_added + 1)))
        elif move == "lose":
            if len(sim.links) > 1:
                sim.remove_worker(worker_id)
        else:
            getattr(sim, move)(worker_id)
    sim.run()
    sim.check_end()


CHANCES = {"add": 3, "abort": 1, "plan": 8, "execute": 9, "deliver": 9}


@given(seed=SEEDS, lease_steps=st.integers(0, 2))
def test_every_request_gets_its_reference_tokens(simulation, make_request, seed, lease_steps):
    random = Random(seed)
    worker = random_worker(random, random.choice((40, 80)), 8)
    sim = simulation(random_policy(random, lease_steps), {"w": worker})

    drive(random, sim, make_request, 14, CHANCES)


@given(seed=SEEDS, lease_steps=st.integers(0, 2), block_size=st.sampled_from((1, 4, 8)))
def test_tokens_are_right_when_blocks_are_short(
    simulation, make_request, seed, lease_steps, block_size
):
    random = Random(seed)
    worker = random_worker(random, 64 // block_size + random.randrange(6), block_size)
    sim = simulation(random_policy(random, lease_steps), {"w": worker})

    drive(random, sim, make_request, 12, CHANCES)


@given(seed=SEEDS, lease_steps=st.integers(0, 2))
def test_tokens_are_right_when_workers_are_lost(simulation, make_request, seed, lease_steps):
    random = Random(seed)
    max_model_len = random.choice((64, 100))
    workers = {
        str(i): ModelWorker(
            num_blocks=random.choice((16, 40)),
            block_size=8,
            max_num_seqs=random.choice((2, 4)),
            max_model_len=max_model_len,
        )
        for i in range(3)
    }
    sim = simulation(random_policy(random, lease_steps), workers)

    drive(random, sim, make_request, 16, {**CHANCES, "lose": 0.2})


@given(seed=SEEDS)
def test_requests_that_fail_take_nothing_with_them(simulation, make_request, seed):
    random = Random(seed)
    worker = ModelWorker(
        num_blocks=20, block_size=8, max_num_seqs=4, max_model_len=100, poison_token_id=5
    )
    sim = simulation(random_policy(random, random.randrange(3)), {"w": worker})

    drive(random, sim, make_request, 14, CHANCES)

    for request_id in sim.failed:
        assert 5 in sim.requests[request_id].prompt_token_ids


@given(seed=SEEDS, lease_steps=st.integers(0, 2))
def test_another_scheduler_goes_on_where_the_clients_are(
    simulation, make_request, seed, lease_steps
):
    random = Random(seed)
    worker = ModelWorker(num_blocks=24, block_size=8, max_num_seqs=4, max_model_len=100)
    policy = random_policy(random, lease_steps)
    first = simulation(policy, {"w": worker})
    for i in range(6):
        first.add(random_request(random, make_request, first, str(i), 60))
    for _ in range(random.randrange(60)):
        getattr(first, random.choice(("plan", "execute", "deliver")))("w")

    worker.reset()
    second = simulation(policy, {"w": worker})
    for request_id, request in first.requests.items():
        if request_id not in first.finished:
            outputs = {i: first.outputs[request_id, i] for i in range(request.num_choices)}
            second.add(request, outputs)
    second.run()

    second.check_end()


@given(seed=SEEDS)
def test_preemption_happens_in_these_simulations(simulation, make_request, seed):
    """Guards the tests above: a pool for one and a half sequences does force preemption."""
    random = Random(seed)
    worker = ModelWorker(num_blocks=12, block_size=8, max_num_seqs=3, max_model_len=64)
    sim = simulation(SchedulerPolicy(), {"w": worker})
    for i in range(3):
        prompt = [random.randrange(1, 97) for _ in range(9)]
        sim.add(make_request(str(i), prompt, max_tokens=55, arrival=i))

    sim.run()

    sim.check_end()
    assert sim.scheduler.stats().num_preemptions > 0


@pytest.mark.parametrize("num_plans", [1, 2])
def test_a_row_that_ended_takes_part_in_no_further_step(simulate, make_request, num_plans):
    sim = simulate(lease_steps=0)
    sim.add(make_request("a", max_tokens=1))
    for _ in range(num_plans):
        sim.plan()

    sim.run()

    sim.check_end()
    assert sim.outputs["a", 0].__len__() == 1
