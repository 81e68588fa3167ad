"""The response cache: whole answers by the hash of their request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from time import perf_counter
from typing import Any, Protocol, TypeVar

from millrace.core.answer import CacheStats
from millrace.core.breaker import Breaker
from millrace.core.errors import InvalidRequest, Unavailable
from millrace.telemetry.metrics import CacheMetrics

from .seal import DIGEST_BYTES, seal, unseal
from .store import StoreRefused, StoreSize

KEY_BYTES = 32

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Store(Protocol):
    """What the cache needs of a store; see `RedisStore`."""

    max_bytes: int

    async def get(self, key: str) -> bytes | None:
        """The value, or None."""
        ...

    async def put(self, key: str, value: bytes) -> bool:
        """False where the value is over the cap."""
        ...

    async def remove(self, key: str) -> None:
        """Drops a value."""
        ...

    async def size(self) -> StoreSize:
        """What is kept now."""
        ...


class ResponseCache:
    """Answers are opaque bytes here. Raises Unavailable, fast, while the store is out of reach.

    A call that its caller gives up runs on to its end: only then does the breaker see that the
    store is slow, and no connection is left with an answer that nobody reads.
    """

    def __init__(
        self, store: Store, breaker: Breaker, metrics: CacheMetrics, *, max_answer_bytes: int
    ) -> None:
        self._store = store
        self._breaker = breaker
        self._metrics = metrics
        self._max_answer_bytes = max_answer_bytes
        self._running: set[asyncio.Task[Any]] = set()
        self._num_hits = 0
        self._num_misses = 0
        self._num_stores = 0

    async def look_up(self, key: bytes) -> bytes | None:
        """The answer, or None; what is corrupt is dropped and counts as absent."""
        return await self._detached(self._look_up(_checked(key)))

    async def store(self, key: bytes, answer: bytes) -> bool:
        """Keeps an answer; False where it is over the cap for one answer, or over that for all."""
        if len(answer) + DIGEST_BYTES > self._max_answer_bytes:
            self._metrics.results.labels("refused").inc()
            return False
        return await self._detached(self._put(_checked(key), answer))

    async def stats(self) -> CacheStats:
        """The counts; without a store, those of this process."""
        try:
            size = await self._detached(self._guarded("size", self._store.size()))
            connected = True
        except Unavailable:
            size, connected = StoreSize(0, 0), False
        return CacheStats(
            connected=connected,
            num_keys=size.num_keys,
            used_bytes=size.used_bytes,
            max_bytes=self._store.max_bytes,
            num_hits=self._num_hits,
            num_misses=self._num_misses,
            num_stores=self._num_stores,
        )

    async def close(self) -> None:
        """Waits for what still runs."""
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _look_up(self, key: bytes) -> bytes | None:
        value = await self._guarded("look_up", self._store.get(key.hex()))
        answer = None if value is None else unseal(key, value)
        if answer is not None:
            self._num_hits += 1
            self._metrics.results.labels("hit").inc()
            return answer
        self._num_misses += 1
        self._metrics.results.labels("miss").inc()
        if value is not None:
            _log.warning("a stored answer of %d bytes is corrupt; dropped", len(value))
            await self._guarded("remove", self._store.remove(key.hex()))
        return None

    async def _put(self, key: bytes, answer: bytes) -> bool:
        is_stored = await self._guarded("store", self._store.put(key.hex(), seal(key, answer)))
        self._num_stores += is_stored
        self._metrics.results.labels("stored" if is_stored else "refused").inc()
        return is_stored

    async def _guarded(self, operation: str, call: Coroutine[Any, Any, T]) -> T:
        if not self._breaker.try_enter():
            call.close()
            raise Unavailable("Redis did not answer lately; the cache leaves it alone for a while")
        started = perf_counter()
        try:
            result = await call
        except StoreRefused:
            # It lives: look-ups may still work where it is only full.
            self._outcome(is_alive=True)
            self._metrics.results.labels("failed").inc()
            raise
        except Unavailable:
            self._outcome(is_alive=False)
            self._metrics.results.labels("failed").inc()
            raise
        self._outcome(is_alive=True)
        self._metrics.operation.labels(operation).observe(perf_counter() - started)
        return result

    def _outcome(self, *, is_alive: bool) -> None:
        if is_alive:
            self._breaker.succeeded()
        else:
            self._breaker.failed()
        self._metrics.connected.set(is_alive)

    async def _detached(self, call: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(call)
        self._running.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            # Looked at here, since the caller may have left.
            task.exception()


def _checked(key: bytes) -> bytes:
    if len(key) != KEY_BYTES:
        raise InvalidRequest(f"the key has {len(key)} bytes; it must have {KEY_BYTES}", field="key")
    return key
