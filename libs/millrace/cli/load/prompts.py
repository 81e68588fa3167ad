"""Prompts of a wanted length from a seed, so that a load needs no data set.

A word of the list is one token in the usual vocabularies, so a prompt is about as many tokens as
words. The figures of a load always show the count that the server reports.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

BLOCK_TOKENS = 512
# The mark at the head of a prompt of its own is about six tokens.
MARK_TOKENS = 6
WORDS = (
    *("the", "water", "wheel", "turns", "and", "river", "runs", "past", "old", "stone", "mill"),
    *("green", "hill", "over", "under", "long", "road", "to", "town", "where", "people", "work"),
    *("morning", "light", "falls", "on", "field", "house", "door", "open", "wind", "from", "north"),
)


class Prompts:
    """Texts that no two begin alike, so that none finds a prefix of another in a cache."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def draw(self, num_tokens: int) -> str:
        """A text of about `num_tokens` tokens."""
        mark = f"{self._random.getrandbits(32):08x}"
        words = self._random.choices(WORDS, k=max(1, num_tokens - MARK_TOKENS))
        return " ".join([mark, *words])

    def draw_spread(self, count: int, min_tokens: int, max_tokens: int) -> list[str]:
        """`count` texts, their lengths evenly spread over the range, in random order."""
        span = max_tokens - min_tokens
        lengths = [min_tokens + round(span * (index + 0.5) / count) for index in range(count)]
        self._random.shuffle(lengths)
        return [self.draw(length) for length in lengths]


def prompt_of_blocks(hash_ids: Sequence[int], num_tokens: int, seed: int = 0) -> str:
    """The text of about `num_tokens` tokens that a list of block hashes stands for.

    A block's words depend on its hash alone: prompts that share their first hashes share their
    first words.
    """
    words: list[str] = []
    for hash_id in hash_ids:
        generator = random.Random(f"{seed}:{hash_id}")
        words += generator.choices(WORDS, k=min(BLOCK_TOKENS, num_tokens - len(words)))
        if len(words) >= num_tokens:
            break
    return " ".join(words)
