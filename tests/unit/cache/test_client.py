"""The cache client: misses instead of errors, and never a delay."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from millrace.core.answer import CachedAnswer, CacheStats
from millrace.core.errors import Unavailable
from millrace.core.idempotency import IdempotencyRecord
from millrace.core.tokens import FinishReason
from millrace.internal.v1 import cache_pb2, cache_pb2_grpc
from millrace.rpc.client import open_channel
from millrace.rpc.server import RpcServer
from millrace.wire.cache_client import CacheClient, answer_from_bytes, answer_to_bytes
from millrace.wire.idempotency_client import IdempotencyClient

KEY = bytes(32)
ANSWER = CachedAnswer(
    texts=("Hi 你好", ""),
    finish_reasons=(FinishReason.STOP, FinishReason.LENGTH),
    num_output_tokens=(2, 0),
    num_prompt_tokens=7,
    matched_stops=("\n", ""),
    token_ids=((5, 6), ()),
)


class FakeCacheServicer(cache_pb2_grpc.CacheServiceServicer):
    """Answers from a dict, fails or hangs as told."""

    def __init__(self) -> None:
        self.answers: dict[bytes, bytes] = {}
        self.records: dict[bytes, Any] = {}
        self.fails = False
        self.delay_s = 0.0
        self.num_calls = 0

    async def LookUp(self, request: Any, context: Any) -> Any:
        await self._call()
        return cache_pb2.LookUpResponse(answer=self.answers.get(request.key))

    async def Store(self, request: Any, context: Any) -> Any:
        await self._call()
        self.answers[request.key] = request.answer
        return cache_pb2.StoreResponse(stored=True)

    async def ClaimKey(self, request: Any, context: Any) -> Any:
        await self._call()
        holder = self.records.setdefault(request.key, request.record)
        is_own = holder.request_id == request.record.request_id
        return cache_pb2.ClaimKeyResponse(holder=None if is_own else holder)

    async def FinishKey(self, request: Any, context: Any) -> Any:
        await self._call()
        self.records[request.key] = request.record
        return cache_pb2.FinishKeyResponse(kept=True)

    async def FreeKey(self, request: Any, context: Any) -> Any:
        await self._call()
        return cache_pb2.FreeKeyResponse(freed=self.records.pop(request.key, None) is not None)

    async def GetCacheStats(self, request: Any, context: Any) -> Any:
        await self._call()
        return cache_pb2.GetCacheStatsResponse(connected=True, num_hits=3, num_misses=1)

    async def _call(self) -> None:
        self.num_calls += 1
        await asyncio.sleep(self.delay_s)
        if self.fails:
            raise Unavailable("no Redis")


@pytest.fixture
def servicer() -> FakeCacheServicer:
    return FakeCacheServicer()


@pytest.fixture
async def channel(servicer: FakeCacheServicer) -> AsyncIterator[grpc.aio.Channel]:
    server = RpcServer("cache", "127.0.0.1", 0)
    add_to_server = cache_pb2_grpc.add_CacheServiceServicer_to_server
    server.add(add_to_server, servicer, "millrace.internal.v1.CacheService")
    channel = open_channel(await server.start())
    await channel.channel_ready()
    yield channel
    await channel.close()
    await server.stop(grace_s=0)


@pytest.fixture
async def client(channel: grpc.aio.Channel) -> AsyncIterator[CacheClient]:
    client = CacheClient(channel)
    yield client
    await client.close()


def _roomy(client: CacheClient) -> CacheClient:
    """Without the 25 ms, which a busy machine may not keep."""
    client._timeout_s = 5.0
    return client


async def test_stored_answer_comes_back(client: CacheClient) -> None:
    _roomy(client)
    assert await client.look_up(KEY) is None
    assert await client.store(KEY, ANSWER)
    assert await client.look_up(KEY) == ANSWER
    assert client.num_failures == 0


async def test_stats_cross_the_wire(client: CacheClient) -> None:
    stats = await client.stats()
    assert stats.connected
    assert stats.hit_rate == 0.75


async def test_failures_are_misses_and_open_the_breaker(
    client: CacheClient, servicer: FakeCacheServicer
) -> None:
    _roomy(client)
    servicer.fails = True
    for _ in range(10):
        assert await client.look_up(KEY) is None
        assert not await client.store(KEY, ANSWER)
    assert servicer.num_calls == client.num_failures == 5
    assert client.num_skipped == 15
    assert await client.stats() == CacheStats(
        connected=False, reason="the cache service does not answer"
    )


async def test_slow_cache_costs_25_ms_and_then_nothing(
    client: CacheClient, servicer: FakeCacheServicer
) -> None:
    servicer.delay_s = 0.5
    started = time.perf_counter()
    for _ in range(50):
        assert await client.look_up(KEY) is None
    assert time.perf_counter() - started < 0.5
    assert client.num_failures == 5


async def test_cancelled_call_does_not_count(
    client: CacheClient, servicer: FakeCacheServicer
) -> None:
    _roomy(client)
    servicer.delay_s = 5.0
    for _ in range(10):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await client.look_up(KEY)
    servicer.delay_s = 0.0
    assert await client.store(KEY, ANSWER)


async def test_corrupt_answer_is_a_miss(client: CacheClient, servicer: FakeCacheServicer) -> None:
    servicer.answers[KEY] = b"\xff\xff"
    assert await _roomy(client).look_up(KEY) is None
    assert client.num_failures == 1


async def test_closed_client_makes_no_call(
    client: CacheClient, servicer: FakeCacheServicer
) -> None:
    await client.close()
    assert await client.look_up(KEY) is None
    assert servicer.num_calls == 0


async def test_absent_cache_is_a_miss() -> None:
    channel = open_channel("127.0.0.1:1")
    client = CacheClient(channel)
    assert await client.look_up(KEY) is None
    assert await client.stats() == CacheStats(
        connected=False, reason="the cache service does not answer"
    )
    await channel.close()


@pytest.mark.parametrize(
    "message",
    [
        cache_pb2.CachedAnswer(),
        cache_pb2.CachedAnswer(texts=["a"]),
        cache_pb2.CachedAnswer(texts=["a"], finish=[9], num_output_tokens=[0], matched_stops=[""]),
        cache_pb2.CachedAnswer(texts=["a"], finish=[1], num_output_tokens=[2], matched_stops=[""]),
    ],
)
def test_answer_that_does_not_fit_together_is_none(message: cache_pb2.CachedAnswer) -> None:
    assert answer_from_bytes(message.SerializeToString()) is None


def test_answer_keeps_every_field() -> None:
    assert answer_from_bytes(answer_to_bytes(ANSWER)) == ANSWER


async def test_idempotency_record_travels_whole(channel: grpc.aio.Channel) -> None:
    client = IdempotencyClient(channel)
    running = IdempotencyRecord(b"h" * 32, "a" * 32, "gateway")
    finished = IdempotencyRecord(b"h" * 32, "a" * 32, "gateway", True, "tiny", "r", 7, ANSWER)
    other = IdempotencyRecord(b"i" * 32, "b" * 32, "gateway")

    assert await client.claim(KEY, running, 1.0) is None
    assert await client.claim(KEY, other, 1.0) == running
    assert await client.finish(KEY, finished)
    assert await client.claim(KEY, other, 1.0) == finished
    assert await client.free(KEY, running.request_id)


@pytest.mark.parametrize("fault", ["fails", "hangs"])
async def test_idempotency_key_of_unknown_state_is_unavailable(
    channel: grpc.aio.Channel, servicer: FakeCacheServicer, fault: str
) -> None:
    servicer.fails, servicer.delay_s = fault == "fails", 5.0 if fault == "hangs" else 0.0
    client = IdempotencyClient(channel, timeout_s=0.5 if fault == "hangs" else 5.0)

    with pytest.raises(Unavailable, match="nothing was run") as caught:
        await client.claim(KEY, IdempotencyRecord(b"", "a", "g"), 1.0)
    assert caught.value.field == "idempotency_key"
    assert caught.value.retry_after_s
