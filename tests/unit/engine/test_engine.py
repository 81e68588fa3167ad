"""Plans, leases, forks, re-admission and failed steps of the engine."""

from __future__ import annotations

import pytest

from millrace.core.errors import InternalError
from millrace.core.sampling import SamplingSpec
from millrace.core.step import Fork, StepPlan
from millrace.core.tokens import FinishReason


def test_chunks_and_decodes_mixed_in_one_step_equal_transformers(tiny, engine_for, drive, prompt):
    driver = drive(engine_for("llama"))
    prompts = {0: prompt(9), 1: prompt(23), 2: prompt(30)}

    driver.execute(admissions=[driver.admission(0, prompts[0])], chunks=[(0, 9)])
    driver.execute(admissions=[driver.admission(1, prompts[1])], chunks=[(1, 5)])
    mixed = driver.execute(admissions=[driver.admission(2, prompts[2])], chunks=[(1, 11), (2, 13)])
    driver.execute(chunks=[(1, 7), (2, 16)])
    driver.execute(chunks=[(2, 1)])
    for _ in range(10):
        driver.execute()

    assert (mixed.num_tokens, mixed.num_decode_rows) == (25, 1)
    for row, tokens in prompts.items():
        got = driver.outputs[row]
        assert len(got) > 10
        assert got == tiny("llama").greedy(tokens, len(got))


def test_result_names_rows_epochs_plan_and_times(engine_for, drive, prompt):
    driver = drive(engine_for("llama"))

    first = driver.start(3, prompt(9))
    second = driver.execute()

    assert [(token.row, token.row_epoch) for token in first.tokens] == [(3, 103)]
    assert (second.plan_id, second.step_id) == (first.plan_id + 1, first.step_id + 1)
    assert second.num_tokens == second.num_decode_rows == 1
    assert 0 < second.forward_ns + second.sample_ns <= second.step_ns
    assert second.started_unix_ns > first.started_unix_ns


def test_lease_steps_repeat_the_plan_id_and_leave_held_and_sync_rows_alone(
    engine_for, drive, prompt
):
    driver = drive(engine_for("llama"))
    driver.start(0, prompt(9))
    driver.start(1, prompt(8))
    driver.start(2, prompt(7), sync=True)

    planned = driver.execute(hold_rows=[1])
    leased = driver.lease()

    assert [token.row for token in planned.tokens] == [0, 2]
    assert [token.row for token in leased.tokens] == [0]
    assert (leased.plan_id, leased.step_id) == (planned.plan_id, planned.step_id + 1)


def test_lease_without_a_row_that_can_run_is_none(engine_for, drive, prompt):
    driver = drive(engine_for("llama"))
    assert driver.lease() is None
    driver.start(0, prompt(9))

    assert driver.lease() is None  # held by that plan


def test_row_without_block_is_starved_until_it_is_granted_one(tiny, engine_for, drive, prompt):
    driver = drive(engine_for("llama"))
    tokens = prompt(7)
    driver.start(0, tokens, blocks=driver.take(8))
    driver.execute()

    starved = driver.execute()
    leased = driver.lease()
    granted = driver.execute(grants=[(0, driver.take(1)[0])])

    assert (starved.starved_rows, starved.tokens, starved.num_tokens) == ([0], [], 0)
    assert leased is None
    assert granted.starved_rows == []
    assert driver.outputs[0] == tiny("llama").greedy(tokens, 3)


def test_row_ends_at_max_len_and_stays_idle_until_released(engine_for, drive, prompt):
    driver = drive(engine_for("llama"))
    driver.start(0, prompt(9), max_len=11)

    last = driver.execute()
    assert driver.engine.live_rows == []
    after = driver.execute()
    driver.execute(release_rows=[0], admissions=[driver.admission(0, prompt(5))])

    assert last.tokens[0].finish is FinishReason.LENGTH
    assert after.tokens == [] and after.starved_rows == []
    assert driver.engine.live_rows == [0]
    assert driver.engine.num_live_rows == 1


def test_row_ends_at_a_stop_id_but_not_before_min_tokens(tiny, engine_for, drive, prompt):
    driver = drive(engine_for("llama"))
    expected = tiny("llama").greedy(prompt(9), 3)
    stop = (expected[1],)

    driver.start(0, prompt(9), stop_token_ids=stop)
    second = driver.execute()
    spec = SamplingSpec(temperature=0.0, min_tokens=4)
    driver.start(1, prompt(9), stop_token_ids=stop, sampling=spec)
    for _ in range(3):
        driver.execute()

    assert second.tokens[0].finish is FinishReason.STOP
    assert driver.outputs[0] == expected[:2]
    assert len(driver.outputs[1]) == 4
    assert stop[0] not in driver.outputs[1]


@pytest.mark.parametrize(("name", "route"), [("llama", "native"), ("gemma2", "generic")])
def test_cached_prefix_gives_the_same_tokens(tiny, engine_for, drive, prompt, name, route):
    driver = drive(engine_for(name, route=route))
    shared = prompt(20)
    driver.start(0, shared)
    tokens = shared[:16] + prompt(9)

    blocks = driver.blocks[0][:2] + driver.take(40)
    driver.start(1, tokens, num_cached_tokens=16, blocks=blocks)
    for _ in range(8):
        driver.execute()

    assert driver.outputs[1] == tiny(name).greedy(tokens, 9)
    assert driver.outputs[0] == tiny(name).greedy(shared, 9)


def test_preempted_row_continues_with_the_same_tokens(tiny, engine_for, drive, prompt):
    driver = drive(engine_for("qwen2"))
    tokens = prompt(13)
    expected = tiny("qwen2").greedy(tokens, 16)
    driver.start(0, tokens)
    for _ in range(6):
        driver.execute()

    so_far = list(driver.outputs[0])
    again = driver.admission(4, tokens + so_far, num_prompt_tokens=13)
    driver.execute(release_rows=[0], admissions=[again], chunks=[(4, 15)])
    driver.execute(chunks=[(4, 5)])
    for _ in range(8):
        driver.execute()

    assert so_far + driver.outputs[4] == expected


def test_fork_goes_its_own_way_and_leaves_its_parent_alone(engine_for, drive, prompt):
    spec = SamplingSpec(temperature=1.5, seed=7)
    driver = drive(engine_for("llama"))
    tokens = prompt(13)
    driver.start(0, tokens, sampling=spec)
    driver.start(1, tokens, sampling=spec)
    for _ in range(3):
        driver.execute()
    so_far = list(driver.outputs[0])

    # 13 prompt tokens and 3 computed outputs lie in two blocks of 8; the second is copied.
    own = driver.take(48)
    fork = Fork(0, 2, 202, choice=1, blocks=[driver.blocks[0][0], *own])
    driver.outputs[2] = []
    forked = driver.execute(copy_blocks=[(driver.blocks[0][1], own[0])], forks=[fork])
    for _ in range(8):
        driver.execute()
    alone = driver.admission(3, tokens + so_far, num_prompt_tokens=13, sampling=spec, choice=1)
    driver.execute(admissions=[alone], chunks=[(3, len(tokens) + 4)])
    for _ in range(8):
        driver.execute()

    assert {token.row: token.row_epoch for token in forked.tokens}[2] == 202
    assert driver.outputs[0] == driver.outputs[1]
    assert driver.outputs[2][:9] == driver.outputs[3]
    assert driver.outputs[2][:9] != driver.outputs[0][4:13]


def test_failed_step_advances_nothing_and_the_next_one_works(
    tiny, engine_for, drive, prompt, monkeypatch
):
    driver = drive(engine_for("llama"))
    tokens = prompt(9)
    driver.start(0, tokens)
    driver.execute()

    with monkeypatch.context() as patch:
        patch.setattr(driver.engine._sampler, "sample", _fail)
        with pytest.raises(RuntimeError, match="out of luck"):
            driver.execute()
    for _ in range(4):
        driver.execute()

    assert driver.outputs[0] == tiny("llama").greedy(tokens, 6)


def _fail(*_):
    raise RuntimeError("out of luck")


def test_freed_blocks_full_of_nan_do_not_leak_into_the_next_row(tiny, engine_for, drive, prompt):
    driver = drive(engine_for("llama"))
    cache = driver.engine._runner.cache
    for tensor in (*cache.keys, *cache.values):
        tensor.fill_(float("nan"))
    tokens = prompt(11)

    driver.start(0, tokens, blocks=driver.take(16))
    driver.execute(grants=[(0, driver.take(1)[0])])
    for _ in range(8):
        driver.execute()

    assert driver.outputs[0] == tiny("llama").greedy(tokens, 10)


def test_reset_drops_every_row(engine_for, drive, prompt):
    driver = drive(engine_for("llama"))
    driver.start(0, prompt(9))

    driver.engine.reset()

    assert driver.engine.num_live_rows == 0
    assert driver.execute().tokens == []


def test_progress_rises_twice_with_every_layer(engine_for, drive, prompt):
    driver = drive(engine_for("llama"))
    before = driver.engine.progress

    driver.start(0, prompt(9))

    assert driver.engine.progress == before + 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunks": [(0, 1)]}, "chunk of 1 for row 0, which has 0 left"),
        ({"chunks": [(1, 4)]}, "chunk of 4 for row 1, which has 3 left"),
        ({"chunks": [(1, 2), (1, 1)]}, "chunk of 1 for row 1"),
        ({"grants": [(5, 1)]}, "row 5, which is free"),
        ({"grants": [(0, 10**6)]}, "names block 1000000"),
        ({"copy_blocks": [(0, -1)]}, "names block -1"),
        ({"forks": [Fork(5, 6, 1, 0, [])]}, "forks row 5, which is free"),
        ({"forks": [Fork(0, 1, 1, 0, [])]}, "fills row 1, which is taken"),
        ({"forks": [Fork(0, 8, 1, 0, [])]}, "fills row 8; rows are 0 to 7"),
    ],
)
def test_impossible_plan_is_refused_and_changes_nothing(
    engine_for, drive, prompt, changes, message
):
    driver = drive(engine_for("llama"))
    driver.start(0, prompt(9))
    driver.execute(admissions=[driver.admission(1, prompt(7))], chunks=[(1, 4)], hold_rows=[0])

    with pytest.raises(InternalError, match=message):
        driver.engine.execute(StepPlan(99, release_rows=[2], **changes))

    assert driver.engine.num_live_rows == 2
    assert [token.row for token in driver.execute(chunks=[(1, 3)]).tokens] == [0, 1]


@pytest.mark.parametrize(
    "changes",
    [
        {"num_cached_tokens": 16},
        {"num_cached_tokens": 3},
        {"max_len": 16},
        {"num_prompt_tokens": 0},
    ],
)
def test_impossible_admission_is_refused(engine_for, drive, prompt, changes):
    driver = drive(engine_for("llama"))

    with pytest.raises(InternalError, match="admits row 0"):
        driver.execute(admissions=[driver.admission(0, prompt(16), **changes)])
