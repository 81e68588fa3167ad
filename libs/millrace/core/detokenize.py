"""Incremental decoding: what goes to the tokenizer for each row of a frame, and what comes back.

The state of a row is its tail, which travels with every call, so that any replica serves any call:
`tail_ids` and `num_tail_shown` of an answer are sent back with the row's next ids. A tail is empty
or a few ids long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """New ids of one row, after its tail. `final`: nothing follows, so show what was held back."""

    tail_ids: Sequence[int]
    num_tail_shown: int
    new_ids: Sequence[int]
    final: bool = False


@dataclass(frozen=True, slots=True)
class DecodedRow:
    """The text that became certain, and the tail for the next call."""

    text: str
    tail_ids: tuple[int, ...]
    num_tail_shown: int
