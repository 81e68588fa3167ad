"""Waiting for a part of the stack that restarts, instead of refusing what it will serve again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from opentelemetry import trace

from millrace.core.errors import Unavailable
from millrace.telemetry.names import ATTR_HOLD_REASON, SPAN_HOLD

_tracer = trace.get_tracer(__name__)

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
        try:
            return await attempt()
        except Unavailable as error:
            if not self._may_wait(FIRST_RETRY_S):
                raise
            missing = error
        with _tracer.start_as_current_span(
            SPAN_HOLD,
            attributes={ATTR_HOLD_REASON: missing.message},
            record_exception=False,
            set_status_on_exception=False,
        ):
            return await self._try_again(attempt, missing)

    async def _try_again(self, attempt: Callable[[], Awaitable[T]], missing: Unavailable) -> T:
        retry_s = FIRST_RETRY_S
        while self._may_wait(retry_s):
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, MAX_RETRY_S)
            try:
                return await attempt()
            except Unavailable as error:
                missing = error
        raise missing

    def _may_wait(self, seconds: float) -> bool:
        return self._left_s() >= seconds and not self._is_over()

    def _left_s(self) -> float:
        now_s = time.monotonic()
        if self._end_s is None:
            self._end_s = now_s + self._limit_s
        return self._end_s - now_s
