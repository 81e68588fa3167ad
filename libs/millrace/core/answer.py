"""A whole answer as the response cache holds it, and the counts of the cache."""

from __future__ import annotations

from dataclasses import dataclass

from .tokens import FinishReason


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """Every choice of a finished, deterministic request; each tuple has one entry per choice."""

    texts: tuple[str, ...]
    finish_reasons: tuple[FinishReason, ...]
    num_output_tokens: tuple[int, ...]
    num_prompt_tokens: int
    matched_stops: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]

    def is_consistent(self) -> bool:
        """True where every column has an entry per choice and the token counts agree."""
        num_choices = len(self.texts)
        columns = (self.finish_reasons, self.num_output_tokens, self.matched_stops, self.token_ids)
        return all(len(column) == num_choices for column in columns) and all(
            len(ids) == count
            for ids, count in zip(self.token_ids, self.num_output_tokens, strict=True)
        )


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counts of the cache service; hits, misses and stores since it started.

    `reason` says why it is not connected, in words for everybody.
    """

    connected: bool
    num_keys: int = 0
    used_bytes: int = 0
    max_bytes: int = 0
    num_hits: int = 0
    num_misses: int = 0
    num_stores: int = 0
    reason: str = ""

    @property
    def hit_rate(self) -> float:
        """Hits over look-ups, 0 to 1; 0 before the first look-up."""
        num_look_ups = self.num_hits + self.num_misses
        return self.num_hits / num_look_ups if num_look_ups else 0.0
