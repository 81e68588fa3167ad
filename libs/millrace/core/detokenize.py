"""Incremental decoding: what goes to the tokenizer for each row of a frame, and what comes back.

The state of a row is its tail, which travels with every call, so that any replica serves any call:
`tail_ids` and `num_tail_shown` of an answer are sent back with the row's next ids. A tail is empty
or a few ids long. Text that goes on after a prompt begins with the prompt's last ids as its tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# How many of a prompt's last ids a row begins with: more than what an open character takes, special
# tokens after it included.
NUM_PROMPT_TAIL_IDS = 16


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """New ids of one row, after its tail. `final`: nothing follows, so show what was held back.
    `is_after_prompt`: the tail is the end of the prompt."""

    tail_ids: Sequence[int]
    num_tail_shown: int
    new_ids: Sequence[int]
    final: bool = False
    is_after_prompt: bool = False


@dataclass(frozen=True, slots=True)
class DecodedRow:
    """The text that became certain, and the tail for the next call."""

    text: str
    tail_ids: tuple[int, ...]
    num_tail_shown: int
