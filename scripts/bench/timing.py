"""How long a call takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any


def median_s(call: Callable[[], Any], count: int) -> float:
    """Median seconds of `count` calls after one that warms up."""
    call()
    times = []
    for _ in range(count):
        started_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - started_s)
    return median(times)


def mean_s(call: Callable[[], Any], seconds: float) -> float:
    """Mean seconds of as many calls as fit into `seconds`, at the least one."""
    count = 0
    started_s = now_s = time.perf_counter()
    while now_s - started_s < seconds:
        call()
        count += 1
        now_s = time.perf_counter()
    return (now_s - started_s) / count
