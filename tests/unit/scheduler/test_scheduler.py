from __future__ import annotations

import pytest

from millrace.core.errors import (
    ConfigError,
    Conflict,
    ContextLengthExceeded,
    InternalError,
    InvalidRequest,
    Overloaded,
)
from millrace.core.sampling import SamplingSpec
from millrace.core.step import RowToken, StepResult
from millrace.core.tokens import FinishReason
from millrace.scheduler.policy import SchedulerPolicy
from millrace.scheduler.sequence import SequenceStatus
from millrace.testing.model_worker import ModelWorker, expected_output

PROMPT = list(range(1, 41))


def test_a_request_is_admitted_prefilled_and_decoded(simulate, make_request):
    sim = simulate(block_size=16)
    sim.add(make_request("a", PROMPT, max_tokens=3))

    outcome = sim.step()
    (plan,) = sim.links["w"].sent

    (admission,) = plan.admissions
    assert (admission.token_ids, admission.num_cached_tokens) == (PROMPT, 0)
    assert admission.max_len == 43
    assert plan.chunks == [(admission.row, 40)]
    assert [s.request_id for s in outcome.scheduled] == ["a"]
    assert outcome.scheduled[0].scheduled_unix_ns == sim.now_ns
    assert [(d.start_index, len(d.token_ids)) for d in outcome.deltas] == [(0, 1)]

    sim.run()
    sim.check_end()
    assert sim.finishes["a", 0] is FinishReason.LENGTH


def test_a_stop_token_is_delivered_and_ends_the_request(simulate, make_request):
    sim = simulate()
    request = make_request("a", max_tokens=50, stop=tuple(range(0, 97, 3)))
    sim.add(request)

    sim.run()

    assert sim.finishes["a", 0] is FinishReason.STOP
    assert sim.outputs["a", 0] == expected_output(request)[0]
    assert sim.outputs["a", 0][-1] % 3 == 0


def test_a_long_prompt_is_chunked_and_no_row_samples_before_its_end(simulate, make_request):
    sim = simulate(max_num_batched_tokens=64, max_model_len=256)
    sim.add(make_request("a", [1] * 150, max_tokens=2))

    outcomes = [sim.step() for _ in range(4)]

    chunks = [n for plan in sim.links["w"].sent for _, n in plan.chunks]
    assert chunks == [64, 64, 22]
    assert [len(outcome.deltas) for outcome in outcomes] == [0, 0, 1, 1]


def test_decodes_go_on_beside_a_long_prompt(simulate, make_request):
    sim = simulate(
        max_num_batched_tokens=64, target_itl_ms=1.0, max_itl_stretch=1.0, max_model_len=256
    )
    sim.add(make_request("short", [1, 2], max_tokens=20, arrival=1))
    sim.step()
    sim.add(make_request("long", [3] * 130, max_tokens=2, arrival=2))

    outcomes = [sim.step() for _ in range(4)]

    assert all("short" in {d.request_id for d in outcome.deltas} for outcome in outcomes)
    assert [plan.chunks[0][1] for plan in sim.links["w"].sent[1:5]] == [32, 32, 32, 32]


def test_a_steady_plan_names_nothing(simulate, make_request):
    sim = simulate(block_size=32)
    sim.add(make_request("a", [1] * 33, max_tokens=20))
    sim.step()

    for _ in range(8):
        plan = sim.plan()
        assert (plan.release_rows, plan.admissions, plan.grants) == ([], [], [])
        assert (plan.chunks, plan.hold_rows, plan.lease_steps) == ([], [], 2)
        sim.execute()
        sim.deliver()


def test_a_repeated_prompt_is_taken_from_the_cache_but_for_its_last_token(simulate, make_request):
    sim = simulate(block_size=8)
    prompt = list(range(1, 33))
    sim.add(make_request("a", prompt, max_tokens=1))
    sim.run()

    sim.add(make_request("b", prompt, max_tokens=4))
    sim.run()

    assert sim.scheduled == {"a": 0, "b": 24}
    assert sim.scheduler.stats().workers[0].num_cached_tokens == 24
    assert sim.scheduler.stats().workers[0].num_prefill_tokens == 32 + 8
    sim.check_end()


def test_a_conversation_finds_its_own_answers_in_the_cache(simulate, make_request):
    sim = simulate(block_size=8)
    sim.add(make_request("a", PROMPT, max_tokens=20))
    sim.run()

    sim.add(make_request("b", [*PROMPT, *sim.outputs["a", 0], 1, 2, 3], max_tokens=4))
    sim.run()

    # 59 of the 60 tokens are computed: the last one sampled never went through the model.
    assert sim.scheduled["b"] == 56
    sim.check_end()


def test_another_tenant_does_not_get_the_cached_prompt(simulate, make_request):
    sim = simulate(block_size=8)
    sim.add(make_request("a", PROMPT, max_tokens=1, tenant="x"))
    sim.run()

    sim.add(make_request("b", PROMPT, max_tokens=1, tenant="y"))
    sim.run()

    assert sim.scheduled["b"] == 0


def test_a_prompt_waits_for_its_prefix_while_another_computes_it(simulate, make_request):
    sim = simulate(block_size=8, min_awaited_prefix_tokens=32)
    sim.add(make_request("a", [*PROMPT, 50], max_tokens=30, arrival=1))
    sim.add(make_request("b", [*PROMPT, 60], max_tokens=3, arrival=2))
    sim.add(make_request("c", [70] * 9, max_tokens=3, arrival=3))

    first = sim.plan()
    sim.execute()
    sim.deliver()
    second = sim.plan()

    assert [a.token_ids[-1] for a in first.admissions] == [50, 70]
    assert [(a.token_ids[-1], a.num_cached_tokens) for a in second.admissions] == [(60, 40)]
    sim.run()
    sim.check_end()


def test_further_choices_reuse_the_prompt_of_the_first(simulate, make_request):
    sim = simulate(block_size=8)
    sampling = SamplingSpec(temperature=1.0, seed=3)
    sim.add(make_request("a", PROMPT, max_tokens=6, num_choices=3, sampling=sampling))

    first = sim.plan()
    assert sim.plan() is not None
    sim.execute()
    sim.deliver()
    sim.execute()
    sim.deliver()
    third = sim.plan()

    assert [a.choice for a in first.admissions] == [0]
    assert [(a.choice, a.num_cached_tokens) for a in third.admissions] == [(1, 32), (2, 32)]
    sim.run()
    sim.check_end()
    assert len({tuple(sim.outputs["a", i]) for i in range(3)}) == 3


def test_an_aborted_request_gives_everything_back(simulate, make_request):
    sim = simulate()
    sim.add(make_request("a", PROMPT, max_tokens=50))
    sim.plan()
    sim.plan()
    sim.execute()

    sim.abort("a")
    sim.run()

    sim.check_end()
    assert sim.outputs["a", 0] == []
    assert not sim.scheduler.abort("a")


def test_aborting_a_waiting_request_needs_no_worker(simulate, make_request):
    sim = simulate(max_num_seqs=1)
    sim.add(make_request("a", max_tokens=9, arrival=1))
    sim.step()
    sim.add(make_request("b", num_choices=2, arrival=2))

    sim.abort("b")

    assert sim.scheduler.stats().num_waiting == 0
    sim.run()
    sim.check_end()


def test_a_row_number_is_used_again_in_the_plan_that_releases_it(simulate, make_request):
    sim = simulate(max_num_seqs=1, lease_steps=0)
    sim.add(make_request("a", max_tokens=1, arrival=1))
    sim.add(make_request("b", max_tokens=1, arrival=2))
    sim.step()

    plan = sim.plan()

    assert plan.release_rows == [0]
    assert [a.row for a in plan.admissions] == [0]
    assert plan.admissions[0].row_epoch == 2


def test_tokens_of_an_earlier_use_of_a_row_are_dropped(simulate, make_request):
    sim = simulate(max_num_seqs=1, lease_steps=0)
    sim.add(make_request("a", max_tokens=9, arrival=1))
    sim.add(make_request("b", max_tokens=9, arrival=2))
    sim.step()
    sim.plan()
    sim.abort("a")
    plan = sim.plan()
    assert plan.release_rows == [a.row for a in plan.admissions] == [0]

    sim.execute()
    late = sim.deliver()
    sim.execute()
    outcome = sim.deliver()

    assert late.deltas == []
    assert [d.request_id for d in outcome.deltas] == ["b"]
    sim.run()
    sim.check_end()


def test_requests_past_their_deadline_end_wherever_they_are(simulate, make_request):
    sim = simulate(max_num_seqs=1)
    sim.add(make_request("running", max_tokens=50, deadline_unix_ms=100, arrival=1))
    sim.step()
    sim.add(make_request("waiting", deadline_unix_ms=90, arrival=2))
    sim.add(make_request("patient", deadline_unix_ms=10_000, arrival=3))

    assert sim.scheduler.expire(89) == []
    assert sim.scheduler.expire(100) == ["waiting", "running"]

    sim.aborted |= {"waiting", "running"}
    sim.run()
    sim.check_end()
    assert sim.finished == ["patient"]


def test_a_row_that_fails_again_and_again_ends_its_request_with_an_error(simulate, make_request):
    sim = simulate(poison_token_id=9)
    sim.add(make_request("bad", [9, 1], num_choices=2, arrival=1))
    sim.add(make_request("good", [1, 2], arrival=2))
    outcomes = []
    for _ in range(100):
        outcomes.append(sim.step())
        if sim.failed:
            break

    ((request_id, error),) = outcomes[-1].failed
    (letter,) = outcomes[-1].dead_letters

    assert request_id == letter.request_id == "bad"
    assert isinstance(error, InternalError)
    assert error.message == ("3 steps with the request failed, the last one alone: poisoned prompt")
    assert (letter.num_attempts, letter.cause, letter.num_prompt_tokens) == (3, "failed step", 2)
    assert sum(bool(outcome.preempted) for outcome in outcomes) == 2
    sim.run()
    sim.check_end()


def test_a_failure_in_flight_meets_the_row_of_its_own_plan(simulate, make_request):
    sim = simulate(max_num_seqs=1, lease_steps=0, poison_token_id=9)
    sim.add(make_request("bad", [9, 1], arrival=1))
    sim.add(make_request("good", [1, 2], arrival=2))
    sim.plan()
    sim.abort("bad")
    plan = sim.plan()
    assert plan.release_rows == [a.row for a in plan.admissions] == [0]

    sim.execute()
    outcome = sim.deliver()

    assert outcome.failed == []
    sim.run()
    assert sim.finished == ["good"]


def test_a_full_queue_refuses_by_requests_and_by_tokens(simulate, make_request):
    sim = simulate(max_num_waiting=2, max_waiting_tokens=50)
    sim.add(make_request("a", [1] * 20))
    with pytest.raises(Overloaded, match="51 tokens; the limit is 50") as too_many_tokens:
        sim.scheduler.add_request(make_request("b", [1] * 31), 0)
    sim.add(make_request("c", [1] * 20))
    with pytest.raises(Overloaded, match="3 requests; the limit is 2") as too_many_requests:
        sim.scheduler.add_request(make_request("d", [1]), 0)

    assert too_many_tokens.value.metadata == {"value": "51", "max": "50"}
    assert too_many_requests.value.retry_after_s == 1.0
    sim.run()
    sim.check_end()


def test_a_prompt_without_room_for_one_token_is_refused(simulate, make_request):
    sim = simulate(max_model_len=64)

    with pytest.raises(ContextLengthExceeded, match="64 tokens; the limit is 63"):
        sim.scheduler.add_request(make_request("a", [1] * 64), 0)


def test_the_pool_bounds_a_sequence_like_the_model_does(simulate, make_request):
    sim = simulate(num_blocks=4, block_size=8, max_model_len=64)
    sim.add(make_request("a", [1] * 20, max_tokens=50))

    sim.run()

    assert len(sim.outputs["a", 0]) == 12
    assert sim.finishes["a", 0] is FinishReason.LENGTH


def test_the_same_id_twice_is_a_conflict(simulate, make_request):
    sim = simulate()
    sim.add(make_request("a"))

    with pytest.raises(Conflict):
        sim.scheduler.add_request(make_request("a"), 0)


def test_an_empty_prompt_is_invalid(simulate, make_request):
    with pytest.raises(InvalidRequest):
        simulate().scheduler.add_request(make_request("a", []), 0)


def test_requests_that_came_before_any_worker_are_checked_by_the_first_one(
    simulation, make_request
):
    sim = simulation(SchedulerPolicy(), {})
    sim.add(make_request("long", [1] * 300))
    sim.add(make_request("short", [1] * 30))

    outcome = sim.scheduler.add_worker(
        "w", num_blocks=64, block_size=16, max_num_seqs=4, max_model_len=256, prefix_seed=b""
    )

    ((request_id, error),) = outcome.failed
    assert request_id == "long"
    assert isinstance(error, ContextLengthExceeded)
    assert sim.scheduler.stats().num_waiting == 1


def test_a_resumed_request_continues_after_the_tokens_its_client_has(simulate, make_request):
    sim = simulate()
    request = make_request("a", PROMPT, max_tokens=8)
    expected, _ = expected_output(request)

    sim.add(request, {0: expected[:5]})
    plan = sim.plan()

    assert plan.admissions[0].token_ids == PROMPT + expected[:5]
    assert plan.admissions[0].num_prompt_tokens == 40
    sim.run()
    sim.check_end()


def test_choices_that_had_ended_before_a_resumption_end_at_once(simulate, make_request):
    sim = simulate()
    request = make_request("a", PROMPT, max_tokens=8, num_choices=2)
    expected = [expected_output(request, choice)[0] for choice in range(2)]

    sim.add(request, {0: expected[0], 1: expected[1][:2]})

    assert sim.finishes == {("a", 0): FinishReason.LENGTH}
    sim.run()
    sim.check_end()


def test_a_request_that_had_ended_before_its_resumption_is_finished(simulate, make_request):
    sim = simulate()
    request = make_request("a", max_tokens=50, stop=tuple(range(50)))
    expected, _ = expected_output(request)

    sim.add(request, {0: expected})

    assert sim.finished == ["a"]
    assert sim.finishes["a", 0] is FinishReason.STOP
    sim.check_end()


def test_sequences_of_a_lost_worker_wait_at_their_old_place(simulation, make_request):
    workers = {name: ModelWorker(max_num_seqs=2) for name in ("v", "w")}
    sim = simulation(SchedulerPolicy(), workers)
    for i in range(4):
        sim.add(make_request(str(i), [i + 1] * 20, max_tokens=30, arrival=i))
    for worker_id in workers:
        sim.step(worker_id)
    sim.add(make_request("late", [9] * 20, arrival=9))
    held = [row.sequence for row in sim.mirror("w").rows.values()]

    requeued = sim.scheduler.remove_worker("w").requeued
    del sim.links["w"]

    assert requeued == sorted(sequence.request_id for sequence in held)
    assert all(sequence.status is SequenceStatus.WAITING for sequence in held)
    assert sim.scheduler.stats().num_waiting == 3
    sim.run()
    sim.check_end()
    assert sim.finished[-1] != requeued[0]


def test_an_isolated_request_runs_alone(simulate, make_request):
    sim = simulate(max_bypasses=2)
    for i in range(6):
        sim.add(make_request(str(i), [i + 1] * 20, max_tokens=4 + i, arrival=i))
    sim.scheduler.isolate("1")

    for _ in range(60):
        sim.step()
        running = sim.scheduler.members("w")
        assert running == ["1"] or "1" not in running

    sim.run()
    sim.check_end()


def test_isolating_an_unknown_request_says_so(simulate):
    assert not simulate().scheduler.isolate("nobody")


def test_nothing_to_do_is_no_plan(simulate, make_request):
    sim = simulate()
    assert not sim.scheduler.has_work("w")
    assert sim.plan() is None

    sim.add(make_request("a", max_tokens=1))
    assert sim.scheduler.has_work("w")
    sim.run()

    assert not sim.scheduler.has_work("w")
    assert sim.plan() is None


def test_no_plan_is_made_for_rows_that_end_in_the_steps_on_their_way(simulate, make_request):
    sim = simulate()
    sim.add(make_request("a", max_tokens=1))
    sim.plan()

    assert not sim.scheduler.has_work("w")
    assert sim.plan() is None


def test_logprobs_go_with_their_tokens(simulate, make_request):
    sim = simulate()
    sim.add(make_request("a", sampling=SamplingSpec(top_logprobs=0)))

    outcome = sim.step()

    assert [len(delta.logprobs) for delta in outcome.deltas] == [1]


@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        (StepResult(1, 7), "answered plan 7, which is not due"),
        (StepResult(1, 2), "answered plan 2, which is not due"),
        (StepResult(1, 1, tokens=[RowToken(0, 1, 5)]), "sampled in the prefill of row 0"),
    ],
)
def test_a_worker_that_breaks_the_protocol_is_named(simulate, make_request, result, complaint):
    sim = simulate(max_num_batched_tokens=64)
    sim.add(make_request("a", [1] * 150))
    sim.plan()
    sim.plan()

    with pytest.raises(InternalError, match=complaint):
        sim.scheduler.apply("w", result, 0)


def test_a_worker_id_is_taken_once(simulate):
    sim = simulate()

    with pytest.raises(Conflict):
        sim.add_worker("w", sim.links["w"].worker)


def test_stats_count_what_happened(simulate, make_request):
    sim = simulate(block_size=16, num_blocks=20, lease_steps=0)
    sim.add(make_request("a", [1] * 20, max_tokens=5))
    sim.step()

    (worker,) = sim.scheduler.stats().workers
    assert (worker.num_live_rows, worker.num_used_blocks, worker.num_admissions) == (1, 2, 1)
    assert sim.scheduler.num_used_blocks("w") == 2
    assert sim.scheduler.predicted_step_ms("w") > 0

    sim.run()
    stats = sim.scheduler.stats()
    (worker,) = stats.workers
    assert (stats.num_finished, stats.num_blocks, stats.num_free_blocks) == (1, 20, 19)
    assert (worker.num_decode_steps, worker.num_decode_rows) == (4, 4)
    assert worker.num_prefill_tokens == 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_num_batched_tokens": 63},
        {"target_itl_ms": 0.0},
        {"max_itl_stretch": 0.5},
        {"lease_steps": -1},
        {"ageing_share": 0},
        {"tenant_weights": {"a": 0.0}},
    ],
)
def test_a_policy_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError) as error:
        SchedulerPolicy(**wrong)

    assert error.value.field == next(iter(wrong))
