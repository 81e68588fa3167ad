"""Rows: the engine's seats of live sequences, and their block tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from millrace.core.sampling import SamplingSpec
from millrace.core.step import Admission, Fork
from millrace.core.tokens import FinishReason

from .sampler import SampleRow


@dataclass(slots=True)
class Row:
    """One live sequence.

    It is in prefill until the K/V of its first `num_admitted_tokens` is computed, then decodes, and
    last is finished and idle until released. `token_ids` is prompt and output, shared by `sample`.
    """

    index: int
    epoch: int
    token_ids: list[int]
    num_prompt_tokens: int
    num_admitted_tokens: int
    num_computed_tokens: int
    choice: int
    sampling: SamplingSpec
    stop_token_ids: tuple[int, ...]
    max_len: int
    sync: bool
    num_blocks: int = 0
    finish: FinishReason = FinishReason.NONE
    sample: SampleRow = field(init=False)

    def __post_init__(self) -> None:
        self.sample = SampleRow(
            spec=self.sampling,
            token_ids=self.token_ids,
            num_prompt_tokens=self.num_prompt_tokens,
            choice=self.choice,
            stop_token_ids=self.stop_token_ids,
        )

    @property
    def is_live(self) -> bool:
        """True until the row's last token."""
        return self.finish is FinishReason.NONE

    @property
    def is_decoding(self) -> bool:
        """True where a step brings one more token."""
        return self.is_live and self.num_computed_tokens >= self.num_admitted_tokens

    @property
    def num_prefill_left(self) -> int:
        """Admitted tokens whose K/V is still to be computed."""
        return max(0, self.num_admitted_tokens - self.num_computed_tokens)

    def has_blocks_for(self, num_tokens: int, block_size: int) -> bool:
        """True where `num_tokens` more tokens fit into the granted blocks."""
        return self.num_computed_tokens + num_tokens <= self.num_blocks * block_size

    def append(self, token_id: int) -> FinishReason:
        """Takes a sampled token; returns why the row ended with it, or NONE."""
        num_output = len(self.token_ids) - self.num_prompt_tokens
        self.token_ids.append(token_id)
        if token_id in self.stop_token_ids and num_output >= self.sampling.min_tokens:
            self.finish = FinishReason.STOP
        elif len(self.token_ids) >= self.max_len:
            self.finish = FinishReason.LENGTH
        return self.finish


class RowTable:
    """All rows of an engine. Block tables are one int64 array [max_num_seqs, width] that grows."""

    def __init__(self, max_num_seqs: int) -> None:
        self.rows: list[Row | None] = [None] * max_num_seqs
        self.block_tables: npt.NDArray[np.int64] = np.zeros((max_num_seqs, 16), dtype=np.int64)

    def __iter__(self) -> Iterator[Row]:
        return (row for row in self.rows if row is not None)

    def get(self, index: int) -> Row | None:
        """The row in this seat, or None where the seat is free."""
        return self.rows[index]

    def admit(self, admission: Admission) -> Row:
        """Seats a sequence in prefill."""
        row = Row(
            index=admission.row,
            epoch=admission.row_epoch,
            token_ids=list(admission.token_ids),
            num_prompt_tokens=admission.num_prompt_tokens,
            num_admitted_tokens=len(admission.token_ids),
            num_computed_tokens=admission.num_cached_tokens,
            choice=admission.choice,
            sampling=admission.sampling,
            stop_token_ids=admission.stop_token_ids,
            max_len=admission.max_len,
            sync=admission.sync,
        )
        self.rows[row.index] = row
        self._add_blocks(row, admission.blocks)
        return row

    def fork(self, fork: Fork, parent: Row) -> Row:
        """Seats a copy of `parent` in its present state, with its own block table."""
        row = Row(
            index=fork.to_row,
            epoch=fork.to_row_epoch,
            token_ids=list(parent.token_ids),
            num_prompt_tokens=parent.num_prompt_tokens,
            num_admitted_tokens=parent.num_admitted_tokens,
            num_computed_tokens=parent.num_computed_tokens,
            choice=fork.choice,
            sampling=parent.sampling,
            stop_token_ids=parent.stop_token_ids,
            max_len=parent.max_len,
            sync=parent.sync,
            finish=parent.finish,
        )
        self.rows[row.index] = row
        self._add_blocks(row, fork.blocks)
        return row

    def grant(self, index: int, block: int) -> None:
        """Appends a block to a row's table."""
        row = self.rows[index]
        if row is not None:
            self._add_blocks(row, (block,))

    def end(self, index: int) -> None:
        """Has a row be idle from now on, without a token."""
        row = self.rows[index]
        if row is not None:
            row.finish = FinishReason.ERROR

    def release(self, index: int) -> None:
        """Frees a seat."""
        self.rows[index] = None

    def clear(self) -> None:
        """Frees every seat."""
        self.rows = [None] * len(self.rows)

    def _add_blocks(self, row: Row, blocks: Sequence[int]) -> None:
        needed = row.num_blocks + len(blocks)
        width = self.block_tables.shape[1]
        if needed > width:
            grown = np.zeros((len(self.rows), max(needed, 2 * width)), dtype=np.int64)
            grown[:, :width] = self.block_tables
            self.block_tables = grown
        self.block_tables[row.index, row.num_blocks : needed] = blocks
        row.num_blocks = needed
