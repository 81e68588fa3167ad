"""The cache service against a real Valkey: limits, faults, recovery."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import grpc
import pytest
from prometheus_client import CollectorRegistry

from millrace.cache.guard import StoreGuard
from millrace.cache.idempotency import IdempotencyKeys
from millrace.cache.responses import ResponseCache
from millrace.cache.servicer import CacheServicer
from millrace.cache.store import IDEMPOTENCY_PREFIX, OVERHEAD_BYTES, PREFIX, RedisStore
from millrace.cli.stack.topology import load_topology
from millrace.core.breaker import Breaker
from millrace.core.errors import ConfigError, Unavailable
from millrace.core.idempotency import IdempotencyRecord
from millrace.core.url import RedisUrl
from millrace.internal.v1 import cache_pb2, cache_pb2_grpc
from millrace.rpc.client import open_channel
from millrace.rpc.server import RpcServer
from millrace.telemetry.logs import LineFormatter
from millrace.telemetry.metrics import CacheMetrics
from millrace.testing.servers import LocalServer, start_valkey
from millrace.wire.idempotency_client import IdempotencyClient

KEYS = [bytes([number]) * 32 for number in range(100)]
# One sealed answer of this size and its accounting fill a round 1,000 bytes.
ANSWER = bytes(1000 - OVERHEAD_BYTES - 64 - 16)


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with start_valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
async def store(valkey: LocalServer) -> AsyncIterator[RedisStore]:
    if valkey.process is None or valkey.process.poll() is not None:
        valkey.start()
    store = _store(valkey)
    await store._redis.flushall()
    yield store
    await store.close()


def _store(valkey: LocalServer, *, ttl_s: float = 60.0, max_bytes: int = 1 << 20) -> RedisStore:
    return RedisStore(RedisUrl(valkey.url), ttl_s=ttl_s, max_bytes=max_bytes)


def _cache(store: RedisStore, breaker: Breaker | None = None) -> ResponseCache:
    metrics = CacheMetrics(CollectorRegistry())
    guard = StoreGuard(breaker or Breaker(), metrics)
    return ResponseCache(store, guard, metrics, max_answer_bytes=1 << 16)


def _keys(store: RedisStore, finished_ttl_s: float = 60.0) -> IdempotencyKeys:
    guard = StoreGuard(Breaker(), CacheMetrics(CollectorRegistry()))
    return IdempotencyKeys(store, guard, finished_ttl_s=finished_ttl_s)


async def _found(cache: ResponseCache, keys: list[bytes]) -> list[bool]:
    return [await cache.look_up(key) is not None for key in keys]


async def _accounted(store: RedisStore) -> tuple[int, int, int]:
    """Values, keys in the accounting, bytes in the accounting."""
    redis = store._redis
    values = await redis.keys(PREFIX + "*")
    total = await redis.hget("mr:v1:resp-size", "")
    return len(values), await redis.zcard("mr:v1:resp-expiry"), int(total or 0)


async def test_answers_come_back_as_stored(store: RedisStore) -> None:
    cache = _cache(store)
    assert await cache.store(KEYS[0], b"\x00\xff answer")
    assert await cache.look_up(KEYS[0]) == b"\x00\xff answer"
    assert await cache.look_up(KEYS[1]) is None
    stats = await cache.stats()
    assert stats.connected
    assert stats.num_keys == 1
    assert stats.used_bytes > 100_000


async def test_storing_again_replaces(store: RedisStore) -> None:
    cache = _cache(store)
    await cache.store(KEYS[0], ANSWER)
    await cache.store(KEYS[0], ANSWER)
    assert await _accounted(store) == (1, 1, 1000)
    await cache.store(KEYS[0], b"")
    assert await cache.look_up(KEYS[0]) == b""
    assert await _accounted(store) == (1, 1, 1000 - len(ANSWER))


async def test_answers_expire_and_leave_the_accounting(
    valkey: LocalServer, store: RedisStore
) -> None:
    brief = _store(valkey, ttl_s=0.05)
    cache = _cache(brief)
    await cache.store(KEYS[0], ANSWER)
    deadline = time.monotonic() + 5
    while await cache.look_up(KEYS[0]) is not None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    assert (await brief.size()).num_keys == 0
    assert await _accounted(store) == (0, 0, 0)
    await brief.close()


async def test_oldest_answers_make_room(valkey: LocalServer, store: RedisStore) -> None:
    small = _store(valkey, max_bytes=3000)
    cache = _cache(small)
    for key in KEYS[:5]:
        await cache.store(key, ANSWER)
        await asyncio.sleep(0.002)
    assert await _found(cache, KEYS[:5]) == [False, False, True, True, True]
    assert await _accounted(store) == (3, 3, 3000)
    await small.close()


async def test_several_caches_share_one_cap(valkey: LocalServer, store: RedisStore) -> None:
    stores = [_store(valkey, max_bytes=10_000) for _ in range(3)]
    caches = [_cache(each) for each in stores]
    await asyncio.gather(
        *(caches[number % 3].store(key, ANSWER) for number, key in enumerate(KEYS[:60]))
    )
    assert await _accounted(store) == (10, 10, 10_000)
    for each in stores:
        await each.close()


async def test_answer_over_the_whole_cap_is_not_stored(
    valkey: LocalServer, store: RedisStore
) -> None:
    small = _store(valkey, max_bytes=1500)
    cache = _cache(small)
    assert await cache.store(KEYS[0], ANSWER)
    assert not await cache.store(KEYS[1], ANSWER * 2)
    assert await _found(cache, KEYS[:2]) == [True, False]
    await small.close()


async def test_lost_accounting_heals(valkey: LocalServer, store: RedisStore) -> None:
    small = _store(valkey, max_bytes=3000)
    cache = _cache(small)
    for key in KEYS[:3]:
        await cache.store(key, ANSWER)
    await store._redis.delete("mr:v1:resp-expiry")
    assert await cache.store(KEYS[3], ANSWER)
    assert await cache.store(KEYS[4], ANSWER)
    _, num_keys, num_bytes = await _accounted(store)
    assert (num_keys, num_bytes) == (2, 2000)
    await small.close()


async def test_corrupt_value_is_a_miss_and_deleted(store: RedisStore) -> None:
    cache = _cache(store)
    await cache.store(KEYS[0], ANSWER)
    await store._redis.set(PREFIX + KEYS[0].hex(), b"junk")
    assert await cache.look_up(KEYS[0]) is None
    assert await _accounted(store) == (0, 0, 0)


async def test_value_of_another_type_is_no_answer(store: RedisStore) -> None:
    cache = _cache(store)
    await store._redis.rpush(PREFIX + KEYS[0].hex(), "x")
    with pytest.raises(Unavailable):
        await cache.look_up(KEYS[0])


async def test_full_redis_refuses_stores_and_serves_look_ups(tmp_path: Path) -> None:
    with start_valkey(tmp_path, "--maxmemory-policy", "noeviction") as full:
        store = _store(full)
        cache = _cache(store)
        await cache.store(KEYS[0], ANSWER)
        await store._redis.config_set("maxmemory", "1")
        for _ in range(10):
            with pytest.raises(Unavailable, match="maxmemory"):
                await cache.store(KEYS[1], ANSWER)
        assert await cache.look_up(KEYS[0]) == ANSWER
        await store._redis.config_set("maxmemory", "0")
        assert await cache.store(KEYS[1], ANSWER)
        await store.close()


async def test_killed_redis_is_unavailable_at_once_and_comes_back(tmp_path: Path) -> None:
    with start_valkey(tmp_path) as valkey:
        store = _store(valkey)
        cache = _cache(store, Breaker(open_s=0.1))
        await cache.store(KEYS[0], ANSWER)
        valkey.kill()

        for _ in range(20):
            started = time.perf_counter()
            with pytest.raises(Unavailable):
                await cache.look_up(KEYS[0])
            assert time.perf_counter() - started < 0.5
        assert not (await cache.stats()).connected

        valkey.start()
        deadline = time.monotonic() + 5
        while not (await cache.stats()).connected:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        assert await cache.look_up(KEYS[0]) is None
        assert await cache.store(KEYS[0], ANSWER)
        assert await cache.look_up(KEYS[0]) == ANSWER
        await store.close()


async def test_quick_restart_goes_unnoticed(tmp_path: Path) -> None:
    with start_valkey(tmp_path) as valkey:
        store = _store(valkey)
        cache = _cache(store)
        await cache.store(KEYS[0], ANSWER)
        valkey.kill()
        valkey.start()
        assert await cache.look_up(KEYS[0]) is None
        assert await cache.store(KEYS[0], ANSWER)
        await store.close()


async def test_frozen_redis_is_left_alone_and_never_mixes_answers(tmp_path: Path) -> None:
    with start_valkey(tmp_path) as valkey:
        assert valkey.process is not None
        store = _store(valkey)
        cache = _cache(store, Breaker(open_s=0.1))
        for number, key in enumerate(KEYS[:20]):
            await cache.store(key, b"answer %d" % number)
        os.kill(valkey.process.pid, signal.SIGSTOP)
        for key in KEYS[:20]:
            with pytest.raises((Unavailable, TimeoutError)):
                async with asyncio.timeout(0.025):
                    await cache.look_up(key)
        await cache._guard.close()
        started = time.perf_counter()
        with pytest.raises(Unavailable, match="leaves it alone"):
            await cache.look_up(KEYS[0])
        assert time.perf_counter() - started < 0.02
        os.kill(valkey.process.pid, signal.SIGCONT)

        deadline = time.monotonic() + 5
        while not (await cache.stats()).connected:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        for number, key in enumerate(KEYS[:20]):
            assert await cache.look_up(key) == b"answer %d" % number
        await store.close()


async def test_service_speaks_grpc(store: RedisStore) -> None:
    server = RpcServer("cache", "127.0.0.1", 0)
    add_to_server = cache_pb2_grpc.add_CacheServiceServicer_to_server
    servicer = CacheServicer(_cache(store), _keys(store), max_answer_bytes=100)
    server.add(add_to_server, servicer, "millrace.internal.v1.CacheService")
    channel = open_channel(await server.start())
    stub = cache_pb2_grpc.CacheServiceStub(channel)
    answer = cache_pb2.CachedAnswer(texts=["a"]).SerializeToString()

    stored = await stub.Store(cache_pb2.StoreRequest(key=KEYS[0], answer=answer))
    hit = await stub.LookUp(cache_pb2.LookUpRequest(key=KEYS[0]))
    miss = await stub.LookUp(cache_pb2.LookUpRequest(key=KEYS[1]))
    stats = await stub.GetCacheStats(cache_pb2.GetCacheStatsRequest())

    assert stored.stored
    assert hit.answer == answer
    assert not miss.HasField("answer")
    assert (stats.connected, stats.num_keys, stats.num_hits, stats.num_misses) == (True, 1, 1, 1)
    for request in (
        cache_pb2.StoreRequest(key=KEYS[0], answer=b"\xff"),
        cache_pb2.StoreRequest(key=b"short", answer=answer),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Store(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    record = cache_pb2.IdempotencyRecord(request_id="a", gateway_id="g", body_hash=b"h")
    record.answer.texts.append("x" * 101)
    claim = cache_pb2.ClaimKeyRequest(key=KEYS[2], record=record, hold_ms=1000)
    assert not (await stub.ClaimKey(claim)).HasField("holder")
    finish = cache_pb2.FinishKeyRequest(key=KEYS[2], record=record)
    assert (await stub.FinishKey(finish)).kept
    holder = (await stub.ClaimKey(claim)).holder
    assert holder.request_id == "a"
    # Over the cap.
    assert not holder.HasField("answer")
    free = cache_pb2.FreeKeyRequest(key=KEYS[2], request_id="a")
    assert (await stub.FreeKey(free)).freed
    await channel.close()
    await server.stop(grace_s=0)


async def test_key_has_one_holder_among_many(store: RedisStore) -> None:
    keys = _keys(store)

    found = await asyncio.gather(
        *(keys.claim(KEYS[0], f"r{n}", b"%d" % n, 60_000) for n in range(50))
    )

    winners = [n for n, record in enumerate(found) if record is None]
    assert len(winners) == 1
    assert {record for record in found if record is not None} == {b"%d" % winners[0]}


async def test_only_the_holder_finishes_or_frees_a_key(store: RedisStore) -> None:
    keys = _keys(store)
    assert await keys.claim(KEYS[0], "a", b"a runs", 60_000) is None

    assert not await keys.free(KEYS[0], "b")
    assert not await keys.finish(KEYS[0], "b", b"b ended")
    assert await keys.claim(KEYS[0], "b", b"b runs", 60_000) == b"a runs"
    assert await keys.finish(KEYS[0], "a", b"a ended")
    assert await keys.claim(KEYS[0], "b", b"b runs", 60_000) == b"a ended"
    assert await keys.free(KEYS[0], "a")
    assert await keys.claim(KEYS[0], "b", b"b runs", 60_000) is None


async def test_claim_and_finished_record_run_out_by_themselves(store: RedisStore) -> None:
    keys = _keys(store)
    await keys.claim(KEYS[0], "a", b"a", 5_000)
    name = IDEMPOTENCY_PREFIX + KEYS[0].hex()
    assert 4_000 < await store._redis.pttl(name) <= 5_000

    await keys.finish(KEYS[0], "a", b"a")

    assert 59_000 < await store._redis.pttl(name) <= 60_000


async def test_gateways_and_a_killed_redis(tmp_path: Path) -> None:
    with start_valkey(tmp_path) as valkey:
        store = _store(valkey)
        server = RpcServer("cache", "127.0.0.1", 0)
        add_to_server = cache_pb2_grpc.add_CacheServiceServicer_to_server
        servicer = CacheServicer(_cache(store), _keys(store))
        server.add(add_to_server, servicer, "millrace.internal.v1.CacheService")
        channel = open_channel(await server.start())
        one, other = IdempotencyClient(channel), IdempotencyClient(channel)
        first = IdempotencyRecord(b"h", "a" * 32, "gateway-1")
        second = IdempotencyRecord(b"h", "b" * 32, "gateway-2")

        assert await one.claim(KEYS[0], first, 60.0) is None
        assert await other.claim(KEYS[0], second, 60.0) == first
        valkey.kill()
        started = time.perf_counter()
        with pytest.raises(Unavailable, match="nothing was run"):
            await other.claim(KEYS[1], second, 60.0)
        assert time.perf_counter() - started < 2.0

        await channel.close()
        await server.stop(grace_s=0)
        await store.close()


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ("bob:wrong2@", "Redis refused the password (WRONGPASS)"),
        (":wrong2@", "Redis refused the password (WRONGPASS)"),
        ("", "Redis wants a password (NOAUTH)"),
    ],
)
async def test_a_refused_password_is_told_and_comes_right(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, user: str, said: str
) -> None:
    caplog.set_level(logging.INFO)
    with start_valkey(tmp_path, "--requirepass", "hunt#er2") as valkey:
        store = RedisStore(
            RedisUrl(f"redis://{user}127.0.0.1:{valkey.port}/0"), ttl_s=1, max_bytes=1 << 20
        )
        cache = _cache(store)
        for _ in range(8):
            with pytest.raises(Unavailable, match=re.escape(said)):
                await cache.look_up(KEYS[0])
            stats = await cache.stats()
            assert not stats.connected and stats.reason.startswith(said)
        await store.close()
    lines = [LineFormatter("cache").format(record) for record in caplog.records]
    (line,) = [line for line in lines if "WARNING" in line]
    assert said in line and f"127.0.0.1:{valkey.port}" in line
    assert "wrong2" not in "".join(lines)


async def test_an_encoded_password_opens_redis(tmp_path: Path) -> None:
    with start_valkey(tmp_path, "--requirepass", "hunt#er2/?@:%") as valkey:
        password = quote("hunt#er2/?@:%", safe="")
        url = RedisUrl(f"redis://default:{password}@127.0.0.1:{valkey.port}/0")
        store = RedisStore(url, ttl_s=1, max_bytes=1 << 20)
        assert (await _cache(store).stats()).connected
        await store.close()


async def test_keys_without_redis_are_unavailable() -> None:
    store = RedisStore(RedisUrl("redis://127.0.0.1:1/0"), ttl_s=1, max_bytes=1)
    with pytest.raises(Unavailable):
        await _keys(store).claim(KEYS[0], "a", b"a", 1000)
    await store.close()


@pytest.mark.parametrize("option", ["hunter2=1", "db=hunter2", "socket_timeout=hunter2"])
def test_wrong_option_of_the_url_is_a_config_error_that_does_not_quote_it(option: str) -> None:
    with pytest.raises(ConfigError, match="redis_url") as caught:
        RedisStore(RedisUrl(f"redis://127.0.0.1/?{option}"), ttl_s=1, max_bytes=1)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.fixture
def stack_valkey(tmp_path: Path) -> Iterator[LocalServer]:
    """A Valkey with the arguments that the stack gives it."""
    spec = load_topology().get("valkey")
    with start_valkey(tmp_path, *durability(spec.args)) as server:
        yield server


def durability(args: tuple[str, ...]) -> tuple[str, ...]:
    """Those of a server's arguments that decide what a restart keeps."""
    pairs = zip(args[::2], args[1::2], strict=True)
    return tuple(
        word
        for pair in pairs
        if pair[0] in ("--save", "--appendonly", "--appendfsync")
        for word in pair
    )


@pytest.mark.parametrize("end", [LocalServer.kill, LocalServer.stop])
async def test_a_key_survives_the_restart_of_the_stacks_store(
    stack_valkey: LocalServer, end: Callable[[LocalServer], None]
) -> None:
    store = _store(stack_valkey)
    keys = _keys(store)
    assert await keys.claim(KEYS[0], "first", b"running", 60_000) is None
    assert await keys.finish(KEYS[0], "first", b"the answer")
    assert await keys.claim(KEYS[1], "second", b"running", 60_000) is None
    await store.close()

    end(stack_valkey)
    stack_valkey.start()

    store = _store(stack_valkey)
    keys = _keys(store)
    assert await keys.claim(KEYS[0], "third", b"running", 60_000) == b"the answer"
    assert await keys.claim(KEYS[1], "third", b"running", 60_000) == b"running"
    await store.close()
