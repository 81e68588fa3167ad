"""The response cache: whole answers by the hash of their request."""

from __future__ import annotations

import logging
from typing import Protocol

from millrace.core.answer import CacheStats
from millrace.core.errors import InvalidRequest, Unavailable
from millrace.telemetry.metrics import CacheMetrics

from .guard import StoreGuard
from .seal import DIGEST_BYTES, seal, unseal
from .store import StoreSize

KEY_BYTES = 32

_log = logging.getLogger(__name__)


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
    """Answers are opaque bytes here. Raises Unavailable, fast, while the store is out of reach."""

    def __init__(
        self, store: Store, guard: StoreGuard, metrics: CacheMetrics, *, max_answer_bytes: int
    ) -> None:
        self._store = store
        self._guard = guard
        self._metrics = metrics
        self._max_answer_bytes = max_answer_bytes
        self._num_hits = 0
        self._num_misses = 0
        self._num_stores = 0

    async def look_up(self, key: bytes) -> bytes | None:
        """The answer, or None; what is corrupt is dropped and counts as absent."""
        return await self._guard.detached(self._look_up(checked_key(key)))

    async def store(self, key: bytes, answer: bytes) -> bool:
        """Keeps an answer; False where it is over the cap for one answer, or over that for all."""
        if len(answer) + DIGEST_BYTES > self._max_answer_bytes:
            self._metrics.results.labels("refused").inc()
            return False
        return await self._guard.detached(self._put(checked_key(key), answer))

    async def stats(self) -> CacheStats:
        """The counts; without a store, those of this process, and why."""
        reason = ""
        try:
            size = await self._guard.detached(self._guard.call("size", self._store.size()))
        except Unavailable as error:
            size, reason = StoreSize(0, 0), error.message
        return CacheStats(
            connected=not reason,
            reason=reason,
            num_keys=size.num_keys,
            used_bytes=size.used_bytes,
            max_bytes=self._store.max_bytes,
            num_hits=self._num_hits,
            num_misses=self._num_misses,
            num_stores=self._num_stores,
        )

    async def _look_up(self, key: bytes) -> bytes | None:
        value = await self._guard.call("look_up", self._store.get(key.hex()))
        answer = None if value is None else unseal(key, value)
        if answer is not None:
            self._num_hits += 1
            self._metrics.results.labels("hit").inc()
            return answer
        self._num_misses += 1
        self._metrics.results.labels("miss").inc()
        if value is not None:
            _log.warning("a stored answer of %d bytes is corrupt; dropped", len(value))
            await self._guard.call("remove", self._store.remove(key.hex()))
        return None

    async def _put(self, key: bytes, answer: bytes) -> bool:
        is_stored = await self._guard.call("store", self._store.put(key.hex(), seal(key, answer)))
        self._num_stores += is_stored
        self._metrics.results.labels("stored" if is_stored else "refused").inc()
        return is_stored


def checked_key(key: bytes) -> bytes:
    """The key. Raises `InvalidRequest` where it has another length."""
    if len(key) != KEY_BYTES:
        raise InvalidRequest(f"the key has {len(key)} bytes; it must have {KEY_BYTES}", field="key")
    return key
