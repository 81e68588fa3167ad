"""Rows of one step → one flattened batch of arrays. No state, no model, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .row import Row, RowTable

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Work:
    """What a row does in a step: the next `num_tokens` of its known tokens go through the model."""

    row: Row
    num_tokens: int

    @property
    def context_len(self) -> int:
        """Tokens whose K/V exists after the step."""
        return self.row.num_computed_tokens + self.num_tokens

    @property
    def samples(self) -> bool:
        """True where the step reaches the last known token and so draws the next one."""
        return self.context_len == len(self.row.token_ids)


@dataclass(frozen=True, slots=True)
class Batch:
    """A flattened batch of R rows and T tokens; rows with one token come first, by rising context.

    Arrays are int64 on the host; those who compute elsewhere take them there. `block_tables` [R,
    most blocks] is padded with the row's own first block, so that a gather by it touches nothing of
    other rows.
    """

    work: tuple[Work, ...]
    num_decode_rows: int
    input_ids: IntArray  # [T]
    positions: IntArray  # [T]
    slot_mapping: IntArray  # [T]
    sample_indices: IntArray  # [rows that sample]
    wants_logits: npt.NDArray[np.uint8]  # [rows that sample], 0 where the likeliest token is enough
    block_tables: IntArray  # [R, blocks]
    query_lens: IntArray  # [R]
    context_lens: IntArray  # [R]
    cu_seqlens_q: IntArray  # [R + 1]
    block_size: int

    @property
    def num_tokens(self) -> int:
        """T: tokens that go through the model."""
        return int(self.cu_seqlens_q[-1])

    @property
    def sampling_work(self) -> list[Work]:
        """The work items that draw a token, in the order of `sample_indices`."""
        return [item for item in self.work if item.samples]


def order_work(work: Sequence[Work]) -> tuple[tuple[Work, ...], int]:
    """Rows with one token, by rising context, then the rest as given; and how many come first."""
    singles = sorted((item for item in work if item.num_tokens == 1), key=_context_len)
    return (*singles, *(item for item in work if item.num_tokens > 1)), len(singles)


def build_batch(work: Sequence[Work], rows: RowTable, block_size: int) -> Batch:
    """The arrays of one step. `work` must not be empty and every row must have its blocks."""
    ordered, num_decode_rows = order_work(work)
    query_lens = np.array([item.num_tokens for item in ordered], dtype=np.int64)
    context_lens = np.array([item.context_len for item in ordered], dtype=np.int64)
    cu_seqlens_q = np.concatenate(([0], np.cumsum(query_lens)))
    token_ids: list[int] = []
    for item in ordered:
        start = item.row.num_computed_tokens
        token_ids += item.row.token_ids[start : start + item.num_tokens]
    positions = _positions(query_lens, context_lens, cu_seqlens_q)
    seats = np.array([item.row.index for item in ordered], dtype=np.int64)
    tables = rows.block_tables[seats]
    row_of_token = np.repeat(np.arange(len(ordered)), query_lens)
    slots = tables[row_of_token, positions // block_size] * block_size + positions % block_size
    samples = [index for index, item in enumerate(ordered) if item.samples]
    return Batch(
        work=ordered,
        num_decode_rows=num_decode_rows,
        input_ids=np.array(token_ids, dtype=np.int64),
        positions=positions,
        slot_mapping=slots,
        sample_indices=cu_seqlens_q[1:][samples] - 1,
        wants_logits=np.array(
            [not item.row.sample.is_plain_greedy for item in ordered if item.samples],
            dtype=np.uint8,
        ),
        block_tables=pad_block_tables(tables, context_lens, block_size),
        query_lens=query_lens,
        context_lens=context_lens,
        cu_seqlens_q=cu_seqlens_q,
        block_size=block_size,
    )


def pad_block_tables(tables: IntArray, context_lens: IntArray, block_size: int) -> IntArray:
    """Cuts [R, width] to the longest context; beyond its own, a row repeats its first block."""
    num_blocks = -(-context_lens // block_size)
    columns = np.arange(int(num_blocks.max()))
    own = columns[None, :] < num_blocks[:, None]
    return np.where(own, tables[:, : len(columns)], tables[:, :1])


def _positions(query_lens: IntArray, context_lens: IntArray, cu_seqlens_q: IntArray) -> IntArray:
    first = context_lens - query_lens
    return np.arange(int(cu_seqlens_q[-1])) + np.repeat(first - cu_seqlens_q[:-1], query_lens)


def _context_len(item: Work) -> int:
    return item.context_len
