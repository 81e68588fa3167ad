"""Requests for a comparison of batching: Poisson arrivals, and batches of a fixed size of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from millrace.cli.load.arrivals import arrival_times
from millrace.cli.load.ask import Ask
from millrace.cli.load.prompts import Prompts

PROMPT_TOKENS = (30, 200)
OUTPUT_TOKENS = (16, 112)


@dataclass(frozen=True, slots=True)
class StaticBatch:
    """Requests that are sent together, once the last of them has arrived."""

    ready_at_s: float
    asks: tuple[Ask, ...]


def poisson_asks(count: int, rate: float, seed: int) -> list[Ask]:
    """Prompts and answers of mixed length, `rate` requests a second on average."""
    rng = random.Random(seed)
    prompts = Prompts(seed).draw_spread(count, *PROMPT_TOKENS)
    times_s = arrival_times(count, rate, seed=seed)
    lengths = [rng.randint(*OUTPUT_TOKENS) for _ in range(count)]
    return [Ask(*one) for one in zip(prompts, lengths, times_s, strict=True)]


def at_once(asks: Sequence[Ask]) -> list[Ask]:
    """The same requests, all sent at the start."""
    return [replace(ask, at_s=0.0) for ask in asks]


def static_batches(asks: Sequence[Ask], size: int) -> list[StaticBatch]:
    """In order of arrival, `size` at a time; the last batch may be smaller.

    Raises ValueError for a size below 1.
    """
    if size < 1:
        raise ValueError(f"a batch of {size} holds nothing")
    ordered = sorted(asks, key=lambda ask: ask.at_s)
    groups = [tuple(ordered[start : start + size]) for start in range(0, len(ordered), size)]
    return [StaticBatch(group[-1].at_s, group) for group in groups]
