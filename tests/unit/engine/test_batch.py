"""Flattening rows into one batch."""

from __future__ import annotations

import numpy as np

from millrace.core.sampling import SamplingSpec
from millrace.core.step import Admission
from millrace.engine.batch import Work, build_batch
from millrace.engine.row import RowTable

BLOCK_SIZE = 4


def seat(rows, index, num_tokens, num_computed, blocks):
    row = rows.admit(
        Admission(
            row=index,
            row_epoch=0,
            token_ids=[100 * index + position for position in range(num_tokens)],
            num_prompt_tokens=num_tokens,
            num_cached_tokens=0,
            choice=0,
            blocks=blocks,
            sampling=SamplingSpec(),
            stop_token_ids=(),
            max_len=1000,
        )
    )
    row.num_computed_tokens = num_computed
    return row


def make_batch():
    rows = RowTable(4)
    work = [
        Work(seat(rows, 0, 9, 3, [7, 5, 9]), 4),
        Work(seat(rows, 1, 6, 5, [2, 8]), 1),
        Work(seat(rows, 2, 3, 2, [4, 6]), 1),
        Work(seat(rows, 3, 2, 0, [1]), 2),
    ]
    return build_batch(work, rows, BLOCK_SIZE)


def test_single_tokens_come_first_by_rising_context():
    batch = make_batch()

    assert [item.row.index for item in batch.work] == [2, 1, 0, 3]
    assert batch.num_decode_rows == 2
    assert batch.query_lens.tolist() == [1, 1, 4, 2]
    assert batch.context_lens.tolist() == [3, 6, 7, 2]
    assert batch.cu_seqlens_q.tolist() == [0, 1, 2, 6, 8]
    assert batch.num_tokens == 8


def test_every_token_has_its_position_and_slot():
    batch = make_batch()

    assert batch.input_ids.tolist() == [202, 105, 3, 4, 5, 6, 300, 301]
    assert batch.positions.tolist() == [2, 5, 3, 4, 5, 6, 0, 1]
    assert batch.slot_mapping.tolist() == [18, 33, 31, 20, 21, 22, 4, 5]


def test_only_rows_at_their_last_token_sample():
    batch = make_batch()

    assert batch.sample_indices.tolist() == [0, 1, 7]
    assert [item.row.index for item in batch.sampling_work] == [2, 1, 3]


def test_block_tables_are_padded_with_the_rows_own_first_block():
    # Row 2 has been granted a second block, but its context does not reach it yet.
    assert make_batch().block_tables.tolist() == [[4, 4], [2, 8], [7, 5], [1, 1]]


def test_block_tables_grow_with_their_rows():
    rows = RowTable(2)
    row = seat(rows, 0, 3, 0, list(range(10)))

    for block in range(10, 100):
        rows.grant(0, block)

    assert row.num_blocks == 100
    assert np.array_equal(rows.block_tables[0, :100], np.arange(100))
