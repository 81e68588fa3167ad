"""Waiting for a part of the stack that restarts, instead of refusing what it will serve again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from millrace.core.errors import Unavailable

FIRST_RETRY_S = 0.05
MAX_RETRY_S = 0.5

T = TypeVar("T")


class Hold:
    """The patience of one request: `limit_s` in all, from the first part that is found missing.

    `is_over` ends it early.
    """

    def __init__(self, limit_s: float, is_over: Callable[[], bool] = lambda: False) -> None:
        self._limit_s = limit_s
        self._is_over = is_over
        self._end_s: float | None = None

    async def until_there(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of `attempt`, which is repeated while it raises `Unavailable`.

        Raises that error once the time is over.
        """
        retry_s = FIRST_RETRY_S
        while True:
            try:
                return await attempt()
            except Unavailable:
                if self._left_s() < retry_s or self._is_over():
                    raise
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, MAX_RETRY_S)

    def _left_s(self) -> float:
        now_s = time.monotonic()
        if self._end_s is None:
            self._end_s = now_s + self._limit_s
        return self._end_s - now_s
