from __future__ import annotations

import pytest

from millrace.core.request import Priority, QueuedRequest
from millrace.core.sampling import SamplingSpec
from millrace.core.step import Admission, Fork, StepPlan
from millrace.core.tokens import FinishReason
from millrace.testing.model_worker import (
    CorruptCache,
    ModelWorker,
    ProtocolError,
    expected_output,
)

SAMPLING = SamplingSpec(temperature=1.0, seed=5)


def admission(token_ids, blocks, *, row=0, max_len=20, num_cached=0, stop=()):
    return Admission(
        row=row,
        row_epoch=row + 10,
        token_ids=list(token_ids),
        num_prompt_tokens=len(token_ids),
        num_cached_tokens=num_cached,
        choice=0,
        blocks=list(blocks),
        sampling=SAMPLING,
        stop_token_ids=stop,
        max_len=max_len,
    )


def started(*, num_tokens=3, lease_steps=0, **fields):
    """A worker with blocks of four tokens and one row past its prefill; and the plan's result."""
    worker = ModelWorker(num_blocks=8, block_size=4, max_num_seqs=2)
    plan = StepPlan(
        1,
        admissions=[admission(range(1, num_tokens + 1), [0], **fields)],
        chunks=[(0, num_tokens)],
        lease_steps=lease_steps,
    )
    return worker, worker.execute(plan)


def test_a_row_gives_the_expected_output_and_ends_at_its_length():
    worker, result = started(max_len=7)
    tokens = list(result.tokens)
    for plan_id, grants in ((2, [(0, 1)]), (3, []), (4, []), (5, [])):
        tokens += worker.execute(StepPlan(plan_id, grants=grants)).tokens

    request = QueuedRequest(
        "r", "g", "m", [1, 2, 3], SAMPLING, (), 4, 1, Priority.NORMAL, 0, arrival_unix_ns=0
    )
    expected, finish = expected_output(request)
    assert [token.token_id for token in tokens] == expected
    assert [token.finish for token in tokens][-2:] == [FinishReason.NONE, finish]
    assert worker.num_live_rows == 0
    assert worker.num_taken_rows == 1


def test_a_row_without_a_block_starves_and_goes_on_later():
    worker, _ = started(num_tokens=4)

    starved = worker.execute(StepPlan(2))
    fed = worker.execute(StepPlan(3, grants=[(0, 5)]))

    assert (starved.tokens, starved.starved_rows) == ([], [0])
    assert len(fed.tokens) == 1


def test_held_rows_decode_neither_in_the_step_nor_in_its_lease():
    worker, _ = started()

    result = worker.execute(StepPlan(2, hold_rows=[0], lease_steps=2))

    assert result.tokens == []
    assert worker.run_lease_step() is None


def test_a_lease_ends_after_its_steps_and_keeps_the_plan_id():
    worker, first = started(num_tokens=2, lease_steps=2)

    leased = [worker.run_lease_step() for _ in range(3)]

    assert [r and (r.step_id, r.plan_id) for r in leased] == [(2, 1), (3, 1), None]
    assert first.step_id == 1


def test_a_block_that_another_row_overwrote_is_noticed():
    worker, _ = started()
    intruder = admission([7, 8, 9], [0], row=1)
    worker.execute(StepPlan(2, admissions=[intruder], chunks=[(1, 3)], hold_rows=[0]))

    with pytest.raises(CorruptCache, match="row 0: block 0 does not hold its tokens 0 to 4"):
        worker.execute(StepPlan(3, grants=[(0, 1)], hold_rows=[1]))


def test_a_cached_prefix_that_is_not_there_is_noticed():
    worker = ModelWorker(num_blocks=8, block_size=4)

    with pytest.raises(CorruptCache):
        worker.execute(StepPlan(1, admissions=[admission(range(6), [0, 1], num_cached=4)]))


def test_a_fork_continues_from_the_shared_blocks_and_a_copy_of_the_last():
    worker, _ = started(num_tokens=6 - 3)
    worker.execute(StepPlan(2, grants=[(0, 1)]))

    forked = worker.execute(
        StepPlan(3, copy_blocks=[(1, 2)], forks=[Fork(0, 1, 99, 1, [0, 2])], hold_rows=[0])
    )

    assert [(token.row, token.row_epoch) for token in forked.tokens] == [(1, 99)]


def test_stop_tokens_are_put_off_until_min_tokens():
    sampling = SamplingSpec(min_tokens=3)
    stop = tuple(range(96))
    request = QueuedRequest(
        "r", "g", "m", [1], sampling, stop, 9, 1, Priority.NORMAL, 0, arrival_unix_ns=0
    )

    output, finish = expected_output(request)

    assert output[:3] == [96, 96, 96]
    assert finish is FinishReason.STOP


@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        (StepPlan(1), "plan 1 after 1"),
        (StepPlan(2, release_rows=[1]), "row 1 released, but free"),
        (StepPlan(2, admissions=[admission([1], [1])]), "row 0 admitted, but not free"),
        (StepPlan(2, admissions=[admission([1], [1], row=2)]), "row 2 admitted, but not free"),
        (StepPlan(2, admissions=[admission([1], [9], row=1)]), "there is no block 9"),
        (StepPlan(2, admissions=[admission([1], [1], row=1, max_len=1)]), "max_len 1 for 1"),
        (
            StepPlan(2, admissions=[admission(range(4), [1], row=1, num_cached=4)]),
            "4 of 4 tokens cached",
        ),
        (StepPlan(2, grants=[(1, 1)]), "row 1 is named, but free"),
        (StepPlan(2, chunks=[(0, 1)]), "row 0, which is not in prefill"),
        (
            StepPlan(2, admissions=[admission([1, 2], [1], row=1)], chunks=[(1, 3)]),
            "row 1 ends at 3",
        ),
    ],
)
def test_plans_that_cannot_be_are_refused(plan, complaint):
    worker, _ = started()

    with pytest.raises(ProtocolError, match=complaint):
        worker.execute(plan)


def test_a_reset_worker_is_empty_and_starts_with_any_plan():
    worker, _ = started()

    worker.reset()

    assert worker.num_taken_rows == 0
    assert worker.execute(StepPlan(1)).tokens == []
