"""The way to the store: a breaker in front of it, and calls that outlive their callers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from time import perf_counter
from typing import Any, TypeVar

from millrace.core.breaker import Breaker
from millrace.core.errors import Unavailable
from millrace.telemetry.metrics import CacheMetrics

from .store import StoreRefused

T = TypeVar("T")


class StoreGuard:
    """Raises Unavailable, fast, while the store is out of reach. One for all users of a store.

    A call that its caller gives up runs on to its end: only then does the breaker see that the
    store is slow, and no connection is left with an answer that nobody reads.
    """

    def __init__(self, breaker: Breaker, metrics: CacheMetrics) -> None:
        self._breaker = breaker
        self._metrics = metrics
        self._refusal = "Redis did not answer lately"
        self._running: set[asyncio.Task[Any]] = set()

    async def call(self, operation: str, call: Coroutine[Any, Any, T]) -> T:
        """One call to the store, unless the breaker is open."""
        if not self._breaker.try_enter():
            call.close()
            raise Unavailable(f"{self._refusal}; the cache leaves it alone for a while")
        started = perf_counter()
        try:
            result = await call
        except StoreRefused:
            # It lives: look-ups may still work where it is only full.
            self._outcome(is_alive=True)
            self._metrics.results.labels("failed").inc()
            raise
        except Unavailable as error:
            self._refusal = error.message
            self._outcome(is_alive=False)
            self._metrics.results.labels("failed").inc()
            raise
        self._outcome(is_alive=True)
        self._metrics.operation.labels(operation).observe(perf_counter() - started)
        return result

    async def detached(self, call: Coroutine[Any, Any, T]) -> T:
        """Its result; it runs on where the caller is cancelled."""
        task = asyncio.create_task(call)
        self._running.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Waits for what still runs."""
        await asyncio.gather(*self._running, return_exceptions=True)

    def _outcome(self, *, is_alive: bool) -> None:
        if is_alive:
            self._breaker.succeeded()
        else:
            self._breaker.failed()
        self._metrics.connected.set(is_alive)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            # Looked at here, since the caller may have left.
            task.exception()
