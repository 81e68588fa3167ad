"""Arrival processes of an open loop: when each request is sent, whatever the server does."""

from __future__ import annotations

import math
import random

from millrace.core.errors import ConfigError


def arrival_times(
    count: int, rate: float, *, burstiness: float = 1.0, burst: int = 1, seed: int = 0
) -> list[float]:
    """Seconds after the start at which `count` requests are sent, `rate` per second on average.

    The gaps are drawn from a gamma distribution with shape `burstiness` and the mean that `rate`
    asks for: 1 is a Poisson process, less is burstier, more is more even, infinity is a metronome.
    Requests come in groups of `burst` at the same moment, groups `burst / rate` apart on average.
    An infinite rate sends all at once. Raises ConfigError for values that are not positive.
    """
    for name, value in (("rate", rate), ("burstiness", burstiness), ("burst", burst)):
        if not value > 0:
            raise ConfigError(f"{name} {value:g} is not greater than 0", field=name)
    if math.isinf(rate):
        return [0.0] * count
    generator = random.Random(seed)
    mean_gap_s = burst / rate
    times_s: list[float] = []
    now_s = 0.0
    while len(times_s) < count:
        times_s += [now_s] * min(burst, count - len(times_s))
        now_s += _gap_s(generator, mean_gap_s, burstiness)
    return times_s


def _gap_s(generator: random.Random, mean_s: float, burstiness: float) -> float:
    if math.isinf(burstiness):
        return mean_s
    return generator.gammavariate(burstiness, mean_s / burstiness)
