"""What a table of steps has a row for."""

from __future__ import annotations

from dataclasses import dataclass

from millrace.engine.kernels.cpu.library import TILE_TOKENS


@dataclass(frozen=True, slots=True)
class Case:
    """Rows of `context` tokens, of which the last `num_new` are new in the step."""

    what: str
    num_rows: int
    num_new: int
    context: int

    @property
    def blocks_per_row(self) -> int:
        """Blocks that hold a row's context."""
        return -(-self.context // TILE_TOKENS)

    @property
    def num_blocks(self) -> int:
        """Blocks of all rows."""
        return self.num_rows * self.blocks_per_row

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """(new tokens, context) of every row."""
        return [(self.num_new, self.context)] * self.num_rows
