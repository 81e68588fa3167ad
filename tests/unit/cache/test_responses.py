"""The response cache over a store that can fail in every way."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from millrace.cache.guard import StoreGuard
from millrace.cache.responses import ResponseCache
from millrace.cache.seal import seal, unseal
from millrace.cache.store import StoreRefused, StoreSize
from millrace.core.breaker import Breaker
from millrace.core.errors import InvalidRequest, MillraceError, Unavailable
from millrace.telemetry.metrics import CacheMetrics

KEY = bytes(range(32))
OTHER_KEY = bytes(32)


class FakeStore:
    """A dict; raises `error` where set, and waits for `gate` where set."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.max_bytes = 1000
        self.error: MillraceError | None = None
        self.gate: asyncio.Event | None = None
        self.num_calls = 0

    async def get(self, key: str) -> bytes | None:
        await self._call()
        return self.values.get(key)

    async def put(self, key: str, value: bytes) -> bool:
        await self._call()
        self.values[key] = value
        return True

    async def remove(self, key: str) -> None:
        await self._call()
        self.values.pop(key, None)

    async def size(self) -> StoreSize:
        await self._call()
        return StoreSize(len(self.values), 42)

    async def _call(self) -> None:
        self.num_calls += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error


def _cache(store: FakeStore, max_answer_bytes: int = 500) -> ResponseCache:
    metrics = CacheMetrics(CollectorRegistry())
    guard = StoreGuard(Breaker(), metrics)
    return ResponseCache(store, guard, metrics, max_answer_bytes=max_answer_bytes)


async def test_stored_answer_is_found_under_its_key_only() -> None:
    cache = _cache(FakeStore())
    assert await cache.store(KEY, b"answer")
    assert await cache.look_up(KEY) == b"answer"
    assert await cache.look_up(OTHER_KEY) is None
    stats = await cache.stats()
    assert (stats.num_hits, stats.num_misses, stats.num_stores) == (1, 1, 1)
    assert stats.hit_rate == 0.5
    assert (stats.connected, stats.num_keys, stats.used_bytes, stats.max_bytes) == (
        True,
        1,
        42,
        1000,
    )


async def test_answer_over_the_cap_is_not_stored() -> None:
    store = FakeStore()
    cache = _cache(store, max_answer_bytes=100)
    assert not await cache.store(KEY, bytes(100))
    assert store.num_calls == 0


@pytest.mark.parametrize(
    "value", [b"", b"junk", seal(OTHER_KEY, b"answer"), seal(KEY, b"a") + b"b"]
)
async def test_corrupt_value_is_a_miss_and_dropped(value: bytes) -> None:
    store = FakeStore()
    store.values[KEY.hex()] = value
    cache = _cache(store)
    assert await cache.look_up(KEY) is None
    assert store.values == {}


async def test_key_of_another_length_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="must have 32"):
        await _cache(FakeStore()).look_up(b"short")


async def test_failing_store_is_left_alone() -> None:
    store = FakeStore()
    store.error = Unavailable("gone")
    cache = _cache(store)
    for _ in range(20):
        with pytest.raises(Unavailable):
            await cache.look_up(KEY)
    assert store.num_calls == 5
    assert not (await cache.stats()).connected


async def test_refusals_do_not_stop_look_ups() -> None:
    store = FakeStore()
    cache = _cache(store)
    await cache.store(KEY, b"answer")
    for _ in range(20):
        store.error = StoreRefused("out of memory")
        with pytest.raises(Unavailable):
            await cache.store(OTHER_KEY, b"more")
        store.error = None
        assert await cache.look_up(KEY) == b"answer"


async def test_slow_store_opens_the_breaker_although_callers_left() -> None:
    store = FakeStore()
    store.gate = asyncio.Event()
    store.error = Unavailable("slow")
    cache = _cache(store)
    for _ in range(5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await cache.look_up(KEY)
    store.gate.set()
    await cache._guard.close()
    with pytest.raises(Unavailable, match="leaves it alone"):
        await cache.look_up(KEY)
    assert store.num_calls == 5


def test_seal_opens_only_for_its_key_and_content() -> None:
    value = seal(KEY, b"answer")
    assert unseal(KEY, value) == b"answer"
    assert unseal(OTHER_KEY, value) is None
    for position in range(len(value)):
        broken = bytearray(value)
        broken[position] ^= 1
        assert unseal(KEY, bytes(broken)) is None
