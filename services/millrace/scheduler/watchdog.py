"""Tells a frozen worker from a slow one.

While a step is under way a worker says twice a second how far it is. A stopped process says
nothing; one whose step hangs says the same again and again; a slow but healthy one moves on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

CHECK_EVERY_S = 0.25
# Five words missed: with the check and what it takes to move, its streams stand for less than 3 s.
SILENCE_S = 2.5
STANDSTILL_S = 3.0
STANDSTILL_STEPS = 8.0
# The first step of a worker may wait long for one thing: code that is compiled for it, say.
FIRST_STANDSTILL_FACTOR = 10.0
# A check this late was held up itself, and the worker's words with it.
MAX_LATENESS_S = 1.0


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """How long a worker may be silent, and its step stand still, while a plan is outstanding."""

    check_every_s: float = CHECK_EVERY_S
    silence_s: float = SILENCE_S
    standstill_s: float = STANDSTILL_S


class StepWatchdog:
    """One worker's. Armed while a plan is outstanding; a first step may stand still for longer."""

    def __init__(
        self, limits: WatchLimits | None = None, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits = limits or WatchLimits()
        self._clock_s = clock_s
        self._is_warm = False
        self._is_busy = False
        self._progress = -1
        self._heard_s = self._moved_s = self._checked_s = clock_s()

    def plan_sent(self) -> None:
        """A plan is on its way; where none was, the clocks start."""
        if not self._is_busy:
            self._is_busy = True
            self._restart()

    def result_heard(self, is_busy: bool) -> None:
        """A step has ended; `is_busy` while another plan is outstanding."""
        self._is_warm = True
        self._is_busy = is_busy
        self._restart()

    def progress_heard(self, count: int) -> None:
        """A step is under way and has come this far."""
        self._heard_s = self._clock_s()
        if count != self._progress:
            self._progress = count
            self._moved_s = self._heard_s

    @property
    def stalled_s(self) -> float:
        """How long ago the worker last came any further."""
        return self._clock_s() - self._moved_s

    def complaint(self, predicted_ms: float) -> str:
        """Why the worker counts as frozen, for a step that should take `predicted_ms`; else ""."""
        now_s = self._clock_s()
        lateness_s = now_s - self._checked_s - self.limits.check_every_s
        self._checked_s = now_s
        if lateness_s > MAX_LATENESS_S:
            self._restart()
        if not self._is_busy:
            return ""
        if now_s - self._heard_s > self.limits.silence_s:
            return f"no word for {now_s - self._heard_s:.1f} s"
        limit_s = max(self.limits.standstill_s, STANDSTILL_STEPS * predicted_ms / 1e3)
        if not self._is_warm:
            limit_s *= FIRST_STANDSTILL_FACTOR
        if now_s - self._moved_s > limit_s:
            return f"its step stands still for {now_s - self._moved_s:.1f} s"
        return ""

    def _restart(self) -> None:
        self._heard_s = self._moved_s = self._clock_s()
