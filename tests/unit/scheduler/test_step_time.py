from __future__ import annotations

from random import Random

import pytest

from millrace.scheduler.budget import TokenBudget
from millrace.scheduler.policy import SchedulerPolicy
from millrace.scheduler.step_time import StepTimeModel, chunk_pairs


def true_ms(num_tokens, kv_tokens, num_pairs=0, *, scale=1.0):
    return scale * (9.0 + 0.25 * num_tokens + 0.0007 * kv_tokens + 0.0004 * num_pairs)


def observe_mixed(model, random, num_steps, *, scale=1.0):
    for _ in range(num_steps):
        num_tokens, kv_tokens = random.choice((1, 8, 32, 160, 512)), random.randrange(20_000)
        noise = random.uniform(0.97, 1.03)
        model.observe(num_tokens, kv_tokens, noise * true_ms(num_tokens, kv_tokens, scale=scale))


def assert_predicts(model, *, scale=1.0, rel=0.1):
    for num_tokens, kv_tokens in ((1, 300), (32, 9600), (200, 5000), (512, 100)):
        expected = true_ms(num_tokens, kv_tokens, scale=scale)
        assert model.predict_ms(num_tokens, kv_tokens) == pytest.approx(expected, rel=rel)


def test_the_fit_finds_the_costs_of_decoding():
    model = StepTimeModel()

    observe_mixed(model, Random(1), 200)

    assert_predicts(model)
    assert model.ms_per_token == pytest.approx(0.25, rel=0.1)


@pytest.mark.parametrize("scale", [0.02, 0.2, 5.0])
def test_a_machine_far_from_the_prior_is_learnt(scale):
    model = StepTimeModel()

    observe_mixed(model, Random(2), 400, scale=scale)

    assert_predicts(model, scale=scale, rel=0.25)


def test_single_steps_that_were_held_up_do_not_matter():
    model, random = StepTimeModel(), Random(3)
    observe_mixed(model, random, 100)

    for _ in range(5):
        model.observe(32, 9600, 20 * true_ms(32, 9600))
        observe_mixed(model, random, 10)

    assert_predicts(model, rel=0.25)


def test_a_lasting_change_is_followed():
    model, random = StepTimeModel(), Random(4)
    observe_mixed(model, random, 200)

    observe_mixed(model, random, 1200, scale=3.0)

    assert_predicts(model, scale=3.0, rel=0.25)


def test_costs_of_prompts_outlast_hours_of_decoding():
    model = learnt()

    for i in range(20_000):
        model.observe(8, 2400, true_ms(8, 2400 + i % 7))

    pairs = chunk_pairs(256, 2000)
    assert model.predict_ms(264, 2400, pairs) == pytest.approx(true_ms(264, 2400, pairs), rel=0.1)


def test_chunks_beside_decodes_are_learnt_from_few_steps_of_any_size():
    """Steps as a server has them: chunks of the same size again and again, beside few rows."""
    model, random = StepTimeModel(), Random(7)
    for i in range(600):
        num_rows, num_chunk = 1 + i % 8, random.choice((0, 0, 32))
        kv_tokens, num_before = 300 * num_rows, 32 * (i % 60)
        num_pairs = chunk_pairs(num_chunk, num_before) if num_chunk else 0
        step_ms = random.uniform(0.9, 1.1) * true_ms(num_rows + num_chunk, kv_tokens, num_pairs)
        model.observe(num_rows + num_chunk, kv_tokens, step_ms, num_pairs=num_pairs)

    for num_rows, num_chunk, num_before in ((1, 32, 0), (8, 32, 1900), (8, 64, 500)):
        pairs = chunk_pairs(num_chunk, num_before)
        expected = true_ms(num_rows + num_chunk, 300 * num_rows, pairs)
        predicted = model.predict_ms(num_rows + num_chunk, 300 * num_rows, pairs)
        assert predicted == pytest.approx(expected, rel=0.2)


def test_steady_decoding_does_not_blow_up_the_fit():
    model, random = StepTimeModel(), Random(5)
    observe_mixed(model, random, 100)

    for i in range(20_000):
        model.observe(8, 2400, random.uniform(0.95, 1.05) * true_ms(8, 2400 + i % 7))

    assert model.predict_ms(8, 2400) == pytest.approx(true_ms(8, 2400), rel=0.05)
    assert 0.05 < model.ms_per_token < 1.0
    assert model.predict_ms(512, 2400) < 10 * true_ms(512, 2400)


def test_costs_are_never_negative():
    model = StepTimeModel()
    for _ in range(300):
        model.observe(512, 0, 1.0)
        model.observe(1, 0, 10.0)

    assert model.base_ms >= 0
    assert model.ms_per_token > 0
    assert model.ms_per_kv_token >= 0


def learnt():
    model, random = StepTimeModel(), Random(6)
    observe_mixed(model, random, 300)
    for _ in range(100):
        num_chunk, num_before = random.randrange(32, 257), random.randrange(4000)
        num_pairs = chunk_pairs(num_chunk, num_before)
        step_ms = random.uniform(0.97, 1.03) * true_ms(8 + num_chunk, 2400, num_pairs)
        model.observe(8 + num_chunk, 2400, step_ms, num_pairs=num_pairs)
    return model


def test_attention_of_chunks_is_learnt_apart_from_that_of_decodes():
    model = learnt()

    assert model.ms_per_pair == pytest.approx(0.0004, rel=0.15)
    assert model.ms_per_kv_token == pytest.approx(0.0007, rel=0.35)
    pairs = chunk_pairs(128, 3000)
    assert model.predict_ms(136, 2400, pairs) == pytest.approx(true_ms(136, 2400, pairs), rel=0.1)


def test_pairs_are_each_token_with_itself_and_all_before():
    assert chunk_pairs(3, 5) == sum(range(6, 9))


@pytest.mark.parametrize("num_before", [0, 100, 4000])
@pytest.mark.parametrize("left_ms", [0.3, 7.0, 60.0])
def test_the_longest_chunk_within_a_time_is_within_it_and_one_more_token_is_not(
    num_before, left_ms
):
    model = learnt()

    num_tokens = model.chunk_within(left_ms, num_before)

    assert model.chunk_ms(num_tokens, num_before) <= left_ms
    assert model.chunk_ms(num_tokens + 1, num_before) > left_ms


def test_prompts_get_the_whole_step_while_nothing_decodes():
    budget = TokenBudget.for_step(SchedulerPolicy(max_num_batched_tokens=512), learnt(), 0, 0)

    assert budget.take(10_000) == 512


def test_beside_decodes_prompts_get_what_the_target_leaves():
    model, policy = learnt(), SchedulerPolicy(target_itl_ms=60.0)

    num_tokens = TokenBudget.for_step(policy, model, 8, 2400).take(10_000)

    assert num_tokens % 32 == 0
    assert model.predict_ms(8, 2400) + model.chunk_ms(num_tokens, 0) <= 60.0
    assert model.predict_ms(8, 2400) + model.chunk_ms(num_tokens + 32, 0) > 60.0


def test_a_slow_decode_step_is_stretched_and_no_more():
    model, policy = learnt(), SchedulerPolicy(target_itl_ms=1.0, max_itl_stretch=3.0)
    decode_ms = model.predict_ms(64, 60_000)

    num_tokens = TokenBudget.for_step(policy, model, 64, 60_000).take(10_000)

    assert num_tokens > 32
    assert 2.5 * decode_ms < decode_ms + model.chunk_ms(num_tokens, 0) <= 3 * decode_ms


def test_the_further_a_prompt_the_shorter_its_chunks():
    model, policy = learnt(), SchedulerPolicy(target_itl_ms=100.0)

    early, late = (
        TokenBudget.for_step(policy, model, 8, 2400).take(10_000, num_before)
        for num_before in (0, 3000)
    )

    assert early >= 2 * late > 0


@pytest.mark.parametrize(
    ("num_waiting", "limit_ms"), [(0, 60.0), (2, 75.0), (8, 120.0), (99, 120.0)]
)
def test_the_more_wait_the_longer_a_step_may_take_up_to_twice_the_target(num_waiting, limit_ms):
    model, policy = learnt(), SchedulerPolicy(target_itl_ms=60.0)

    budget = TokenBudget.for_step(policy, model, 8, 2400, num_waiting)

    num_tokens = budget.take(10_000)
    decode_ms = model.predict_ms(8, 2400)
    assert decode_ms + model.chunk_ms(num_tokens, 0) <= limit_ms
    assert decode_ms + model.chunk_ms(num_tokens + 32, 0) > limit_ms


def test_two_prompts_share_the_time_of_one_step():
    model, policy = learnt(), SchedulerPolicy(target_itl_ms=100.0)
    budget = TokenBudget.for_step(policy, model, 8, 2400)

    first, second = budget.take(100), budget.take(10_000)

    assert first == 100
    assert second > 0
    in_all_ms = model.predict_ms(8, 2400) + model.chunk_ms(100, 0) + model.chunk_ms(second, 0)
    assert in_all_ms <= 100.0


def test_a_prompt_advances_by_one_chunk_however_tight_the_target():
    budget = TokenBudget.for_step(SchedulerPolicy(target_itl_ms=1.0), learnt(), 8, 2400)

    assert budget.take(10_000) == 32
    assert budget.take(10_000) == 0


def test_chunks_are_multiples_of_32_unless_they_end_a_prompt():
    budget = TokenBudget(100)

    assert budget.take(33) == 33
    assert budget.take(500) == 64
    assert budget.take(2) == 2
    assert budget.take(2) == 0
