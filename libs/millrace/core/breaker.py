"""A circuit breaker: stop asking a part that keeps failing, try again after a while.

closed --(max_failures in a row)--> open --(open_s later)--> half-open, one trial
half-open --success--> closed; half-open --failure--> open
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Breaker:
    """Pure state; `clock` gives seconds and must not go back. Not for use by several threads.

    Every `try_enter()` that returned True is followed by exactly one of `succeeded`, `failed` or
    `gave_up` (the trial ended without showing anything, as by a cancellation).
    """

    def __init__(
        self,
        *,
        max_failures: int = 5,
        open_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_failures = max_failures
        self._open_s = open_s
        self._clock = clock
        self._num_failures = 0
        self._opened_at: float | None = None
        self._is_trying = False

    @property
    def is_open(self) -> bool:
        """True while calls are refused, or one trial is under way."""
        return self._opened_at is not None

    def try_enter(self) -> bool:
        """True where a call may be made now."""
        if self._opened_at is None:
            return True
        if self._is_trying or self._clock() - self._opened_at < self._open_s:
            return False
        self._is_trying = True
        return True

    def succeeded(self) -> None:
        """The part answered."""
        self._num_failures = 0
        self._opened_at = None
        self._is_trying = False

    def failed(self) -> None:
        """The part did not answer."""
        self._is_trying = False
        self._num_failures += 1
        if self._num_failures >= self._max_failures:
            self._opened_at = self._clock()

    def gave_up(self) -> None:
        """The call ended before its outcome was known."""
        self._is_trying = False
