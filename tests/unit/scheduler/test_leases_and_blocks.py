from __future__ import annotations

import pytest

from millrace.core.errors import InternalError
from millrace.core.request import Priority
from millrace.scheduler.sequence import SequenceStatus


def status_of(sim, request_id):
    return sim.scheduler._requests[request_id].sequences[0].status


def two_rows_that_outgrow_the_pool(simulate, make_request, **fields_of_old):
    """Five blocks of eight tokens: the older request needs all of them in the end."""
    sim = simulate(num_blocks=5, block_size=8, max_model_len=40, lease_steps=0)
    sim.add(make_request("old", [1] * 14, max_tokens=20, arrival=1, **fields_of_old))
    sim.add(make_request("new", [2] * 2, max_tokens=20, arrival=2))
    return sim


def run_until(sim, is_done):
    for _ in range(100):
        if is_done():
            return
        sim.step()
    raise AssertionError("it never happened")


def plans_until_preemption(sim, *, ahead=False):
    """Runs up to the plan that preempts, which stays unexecuted, with one before it if `ahead`."""
    if ahead:
        sim.plan()
    for _ in range(100):
        plan = sim.plan()
        if sim.scheduler.stats().num_preemptions:
            return plan
        sim.execute()
        sim.deliver()
    raise AssertionError("nobody was preempted")


def test_leased_results_carry_on_under_the_same_plan(simulate, make_request):
    sim = simulate(lease_steps=2)
    sim.add(make_request("a", max_tokens=20))
    plan = sim.plan()
    assert plan.lease_steps == 2

    assert [sim.execute() for _ in range(4)] == [True, True, True, False]
    for _ in range(3):
        sim.deliver()

    assert len(sim.outputs["a", 0]) == 3
    sim.run()
    sim.check_end()


def test_more_leased_steps_than_allowed_break_the_protocol(simulate, make_request):
    sim = simulate(lease_steps=0)
    sim.add(make_request("a", max_tokens=20))
    sim.plan()
    sim.execute()
    result = sim.links["w"].results[0]
    sim.deliver()

    with pytest.raises(InternalError, match="more steps of plan 1"):
        sim.scheduler.apply("w", result, 0)


def test_blocks_cover_two_plans_ahead_and_both_their_leases(simulate, make_request):
    sim = simulate(block_size=1, lease_steps=2)
    sim.add(make_request("a", [1] * 5, max_tokens=40))
    first, second = sim.plan(), sim.plan()

    # 5 tokens, and 3 steps in each plan; the K/V of the last token sampled needs no block yet.
    assert len(first.admissions[0].blocks) + len(second.grants) == 5 + 6

    for _ in range(3):
        sim.execute()
    assert [result.starved_rows for result in sim.links["w"].results] == [[], [], []]
    sim.run()
    sim.check_end()


def test_plans_that_hold_a_row_do_not_count_against_it(simulate, make_request):
    sim = simulate(num_blocks=5, block_size=16, max_model_len=80, lease_steps=2)
    sim.add(make_request("a", [1] * 29, max_tokens=30, arrival=1))
    sim.add(make_request("b", [2] * 29, max_tokens=30, arrival=2))
    sim.plan()
    for _ in range(2):
        sim.execute()
        sim.deliver()
    plans = [sim.plan(), sim.plan()]
    sim.execute()
    sim.deliver()

    # The second plan is still on its way, but "b" does not run in it, and has one slot left.
    plans.append(sim.plan())

    assert [len(plan.hold_rows) for plan in plans] == [1, 1, 0]
    sim.run()
    sim.check_end()


def test_no_row_is_granted_more_than_its_length_limit_needs(simulate, make_request):
    sim = simulate(block_size=4, lease_steps=2)
    sim.add(make_request("a", [1] * 5, max_tokens=3))
    sim.plan()
    sim.plan()

    (row,) = sim.mirror().rows.values()

    assert len(row.blocks) == 2


def test_the_lease_is_given_up_before_any_row_is_disturbed(simulate, make_request):
    sim = simulate(num_blocks=5, block_size=16, max_model_len=80, lease_steps=2)
    sim.add(make_request("a", [1] * 27, max_tokens=30, arrival=1))
    sim.add(make_request("b", [2] * 27, max_tokens=30, arrival=2))
    first = sim.plan()
    for _ in range(3):
        sim.execute()
        sim.deliver()

    second = sim.plan()

    assert (first.lease_steps, second.lease_steps) == (2, 0)
    assert (second.hold_rows, second.grants, second.release_rows) == ([], [], [])
    sim.run()
    sim.check_end()


def test_a_lease_that_may_still_run_costs_nobody_a_row(simulate, make_request):
    sim = simulate(num_blocks=5, block_size=16, max_model_len=80, lease_steps=2)
    sim.add(make_request("a", [1] * 29, max_tokens=30, arrival=1))
    sim.add(make_request("b", [2] * 29, max_tokens=30, arrival=2))
    sim.step()
    rows = {row.sequence.request_id: row.row for row in sim.mirror().rows.values()}

    plans = [sim.step() and sim.links["w"].sent[-1] for _ in range(2)]

    assert [plan.hold_rows for plan in plans] == [[rows["b"]], []]
    assert sim.scheduler.stats().num_preemptions == 0
    sim.run()
    sim.check_end()
    sim.run()
    sim.check_end()


def test_short_of_blocks_the_latest_arrival_is_preempted(simulate, make_request):
    sim = two_rows_that_outgrow_the_pool(simulate, make_request)

    run_until(sim, lambda: sim.scheduler.stats().num_preemptions)

    assert sim.scheduler.members("w") == ["old"]
    sim.run()
    sim.check_end()
    assert sim.finished == ["old", "new"]


def test_short_of_blocks_the_lower_priority_is_preempted_first(simulate, make_request):
    sim = two_rows_that_outgrow_the_pool(simulate, make_request, priority=Priority.LOW)

    run_until(sim, lambda: sim.scheduler.stats().num_preemptions)

    assert sim.scheduler.members("w") == ["new"]
    sim.run()
    sim.check_end()


def test_the_only_row_is_never_preempted(simulate, make_request):
    sim = simulate(num_blocks=4, block_size=8, max_model_len=32)
    sim.add(make_request("a", [1] * 3, max_tokens=29))

    sim.run()

    assert sim.scheduler.stats().num_preemptions == 0
    sim.check_end()


def test_a_preempted_sequence_waits_for_the_plan_that_released_it(simulate, make_request):
    sim = two_rows_that_outgrow_the_pool(simulate, make_request)
    plan = plans_until_preemption(sim)

    assert plan.release_rows
    assert status_of(sim, "new") is SequenceStatus.PREEMPTED
    assert sim.scheduler.stats().num_waiting == 0
    used = sim.scheduler.num_used_blocks("w")

    sim.execute()
    sim.deliver()

    assert status_of(sim, "new") is SequenceStatus.WAITING
    assert sim.scheduler.num_used_blocks("w") < used


def test_tokens_in_flight_of_a_preempted_row_are_accepted(simulate, make_request):
    sim = two_rows_that_outgrow_the_pool(simulate, make_request)
    plans_until_preemption(sim, ahead=True)
    assert sim.links["w"].num_outstanding == 2
    num_before = len(sim.outputs["new", 0])

    sim.execute()
    sim.deliver()

    assert status_of(sim, "new") is SequenceStatus.PREEMPTED
    assert len(sim.outputs["new", 0]) == num_before + 1
    sim.run()
    sim.check_end()


def test_a_preempted_sequence_finds_its_full_blocks_again(simulate, make_request):
    sim = simulate(num_blocks=6, block_size=8, max_model_len=48, lease_steps=0)
    sim.add(make_request("old", [1] * 10, max_tokens=20, arrival=1))
    sim.add(make_request("new", [2] * 17, max_tokens=14, arrival=2))

    sim.run()

    sim.check_end()
    stats = sim.scheduler.stats()
    assert stats.num_preemptions > 0
    assert stats.workers[0].num_cached_tokens >= 8


def test_rows_are_held_while_released_blocks_are_on_their_way_back(simulate, make_request):
    sim = two_rows_that_outgrow_the_pool(simulate, make_request)
    plan = plans_until_preemption(sim)

    (old,) = sim.mirror().decoding.values()
    assert plan.hold_rows == [old.row]
    assert plan.admissions == []
    sim.execute()
    sim.deliver()
    following = sim.plan()
    assert following.hold_rows == []
    assert [row for row, _ in following.grants] == [old.row]
    sim.run()
    sim.check_end()


def test_a_large_prompt_is_not_starved_by_small_ones(simulate, make_request):
    sim = simulate(num_blocks=8, block_size=8, max_model_len=64, max_bypasses=3, lease_steps=0)
    sim.add(make_request("first", [1] * 20, max_tokens=30, arrival=0))
    sim.step()
    sim.add(make_request("large", [2] * 50, max_tokens=2, arrival=1))
    for i in range(20):
        sim.add(make_request(str(i), [3 + i] * 4, max_tokens=3, arrival=2 + i))

    sim.run()

    assert sim.finished.index("large") <= 2 + 3
    sim.check_end()
