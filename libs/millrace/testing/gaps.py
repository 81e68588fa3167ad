"""How long streams stood still: what every test of a fault prints and asserts alike."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


def waits_s(started_s: float, token_times_s: Sequence[float]) -> list[float]:
    """How long a client waited for its first token, then for each after it."""
    return [later - earlier for earlier, later in pairwise((started_s, *token_times_s))]


@dataclass(frozen=True, slots=True)
class Gaps:
    """The longest wait of each of some streams, in seconds."""

    num_streams: int
    median_s: float
    p99_s: float
    most_s: float

    @classmethod
    def of(cls, longest_s: Sequence[float]) -> Gaps:
        """Of at least one stream."""
        ordered = sorted(longest_s)
        p99_s = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
        return cls(len(ordered), statistics.median(ordered), p99_s, ordered[-1])

    def __str__(self) -> str:
        return (
            f"{self.num_streams} streams: longest wait median {self.median_s:.3f} s, "
            f"p99 {self.p99_s:.3f} s, most {self.most_s:.3f} s"
        )
