"""The gateway's end of the cache: whole answers by key, and never a delay or an error."""

from __future__ import annotations

from collections.abc import Awaitable
from itertools import accumulate, pairwise
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError

from millrace.core.answer import CachedAnswer, CacheStats
from millrace.core.breaker import Breaker
from millrace.core.tokens import FinishReason
from millrace.internal.v1 import cache_pb2, cache_pb2_grpc

TIMEOUT_S = 0.025
STATS_TIMEOUT_S = 1.0

T = TypeVar("T")


class CacheClient:
    """Every call ends within 25 ms; a cache that fails 5 times in a row is left alone for 2 s.

    A failure is a miss, or an answer not stored; `num_failures` counts those, `num_skipped` the
    calls that were not made. The channel stays the caller's.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        timeout_s: float = TIMEOUT_S,
        breaker: Breaker | None = None,
    ) -> None:
        self._stub: cache_pb2_grpc.CacheServiceAsyncStub = cache_pb2_grpc.CacheServiceStub(channel)
        self._timeout_s = timeout_s
        self._breaker = breaker or Breaker()
        self._is_closed = False
        self.num_failures = 0
        self.num_skipped = 0

    async def look_up(self, key: bytes) -> CachedAnswer | None:
        """The answer; None on a miss or a failure."""
        if not self._may_call():
            return None
        request = cache_pb2.LookUpRequest(key=key)
        response = await self._answer_of(self._stub.LookUp(request, timeout=self._timeout_s))
        if response is None or not response.HasField("answer"):
            return None
        answer = answer_from_bytes(response.answer)
        self.num_failures += answer is None
        return answer

    async def store(self, key: bytes, answer: CachedAnswer) -> bool:
        """True where the answer is kept now."""
        if not self._may_call():
            return False
        request = cache_pb2.StoreRequest(key=key, answer=answer_to_bytes(answer))
        response = await self._answer_of(self._stub.Store(request, timeout=self._timeout_s))
        return response is not None and response.stored

    async def stats(self) -> CacheStats:
        """The counts; `connected` is False where the cache or its Redis does not answer."""
        try:
            response = await self._stub.GetCacheStats(
                cache_pb2.GetCacheStatsRequest(), timeout=STATS_TIMEOUT_S
            )
        except grpc.aio.AioRpcError:
            return CacheStats(connected=False, reason="the cache service does not answer")
        return CacheStats(
            connected=response.connected,
            num_keys=response.num_keys,
            used_bytes=response.used_bytes,
            max_bytes=response.max_bytes,
            num_hits=response.num_hits,
            num_misses=response.num_misses,
            num_stores=response.num_stores,
            reason=response.reason,
        )

    async def close(self) -> None:
        """No call is made from now on."""
        self._is_closed = True

    def _may_call(self) -> bool:
        if not self._is_closed and self._breaker.try_enter():
            return True
        self.num_skipped += 1
        return False

    async def _answer_of(self, call: Awaitable[T]) -> T | None:
        is_known = False
        try:
            response = await call
            is_known = True
            self._breaker.succeeded()
            return response
        except grpc.aio.AioRpcError:
            is_known = True
            self._breaker.failed()
            self.num_failures += 1
            return None
        finally:
            if not is_known:
                self._breaker.gave_up()


def answer_to_bytes(answer: CachedAnswer) -> bytes:
    """The answer as it lies in the cache."""
    return answer_to_message(answer).SerializeToString()


def answer_to_message(answer: CachedAnswer) -> cache_pb2.CachedAnswer:
    """The answer as it travels."""
    return cache_pb2.CachedAnswer(
        texts=answer.texts,
        finish=[int(reason) for reason in answer.finish_reasons],
        num_output_tokens=answer.num_output_tokens,
        num_prompt_tokens=answer.num_prompt_tokens,
        matched_stops=answer.matched_stops,
        token_ids=[token_id for ids in answer.token_ids for token_id in ids],
    )


def answer_from_bytes(data: bytes) -> CachedAnswer | None:
    """The answer; None where the bytes are none, or do not fit together."""
    try:
        message = cache_pb2.CachedAnswer.FromString(data)
    except DecodeError:
        return None
    return answer_from_message(message)


def answer_from_message(message: cache_pb2.CachedAnswer) -> CachedAnswer | None:
    """The answer; None where its parts do not fit together."""
    try:
        reasons = tuple(FinishReason(number) for number in message.finish)
    except ValueError:
        return None
    ends = list(accumulate(message.num_output_tokens, initial=0))
    answer = CachedAnswer(
        texts=tuple(message.texts),
        finish_reasons=reasons,
        num_output_tokens=tuple(message.num_output_tokens),
        num_prompt_tokens=message.num_prompt_tokens,
        matched_stops=tuple(message.matched_stops),
        token_ids=tuple(tuple(message.token_ids[start:end]) for start, end in pairwise(ends)),
    )
    is_whole = ends[-1] == len(message.token_ids) and bool(answer.texts)
    return answer if is_whole and answer.is_consistent() else None
