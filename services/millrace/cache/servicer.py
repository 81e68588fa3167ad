"""The gRPC edge of the cache: convert, call, convert."""

from __future__ import annotations

import grpc
from google.protobuf.message import DecodeError

from millrace.core.errors import InternalError, InvalidRequest
from millrace.internal.v1 import cache_pb2, cache_pb2_grpc

from .idempotency import IdempotencyKeys
from .responses import ResponseCache

ServicerContext = grpc.aio.ServicerContext[object, object]


class CacheServicer(cache_pb2_grpc.CacheServiceServicer):
    """Serves one response cache and the idempotency keys.

    An answer over `max_answer_bytes` is left out of its key's record.
    """

    def __init__(
        self, responses: ResponseCache, keys: IdempotencyKeys, *, max_answer_bytes: int = 1 << 20
    ) -> None:
        self._responses = responses
        self._keys = keys
        self._max_answer_bytes = max_answer_bytes

    async def LookUp(
        self, request: cache_pb2.LookUpRequest, context: ServicerContext
    ) -> cache_pb2.LookUpResponse:
        """Looks an answer up."""
        return cache_pb2.LookUpResponse(answer=await self._responses.look_up(request.key))

    async def Store(
        self, request: cache_pb2.StoreRequest, context: ServicerContext
    ) -> cache_pb2.StoreResponse:
        """Stores an answer that is one."""
        try:
            cache_pb2.CachedAnswer.FromString(request.answer)
        except DecodeError as error:
            raise InvalidRequest("answer is not a CachedAnswer", field="answer") from error
        is_stored = await self._responses.store(request.key, request.answer)
        return cache_pb2.StoreResponse(stored=is_stored)

    async def ClaimKey(
        self, request: cache_pb2.ClaimKeyRequest, context: ServicerContext
    ) -> cache_pb2.ClaimKeyResponse:
        """Takes an idempotency key, or tells who has it."""
        record = request.record
        found = await self._keys.claim(
            request.key, record.request_id, record.SerializeToString(), request.hold_ms
        )
        if found is None:
            return cache_pb2.ClaimKeyResponse()
        try:
            holder = cache_pb2.IdempotencyRecord.FromString(found)
        except DecodeError as error:
            # Never taken for a free key: that might run a request twice.
            raise InternalError("the record of this idempotency key cannot be read") from error
        return cache_pb2.ClaimKeyResponse(holder=holder)

    async def FinishKey(
        self, request: cache_pb2.FinishKeyRequest, context: ServicerContext
    ) -> cache_pb2.FinishKeyResponse:
        """Keeps what became of a key's request."""
        record = request.record
        if record.answer.ByteSize() > self._max_answer_bytes:
            record.ClearField("answer")
        kept = await self._keys.finish(request.key, record.request_id, record.SerializeToString())
        return cache_pb2.FinishKeyResponse(kept=kept)

    async def FreeKey(
        self, request: cache_pb2.FreeKeyRequest, context: ServicerContext
    ) -> cache_pb2.FreeKeyResponse:
        """Gives an idempotency key back."""
        freed = await self._keys.free(request.key, request.request_id)
        return cache_pb2.FreeKeyResponse(freed=freed)

    async def GetCacheStats(
        self, request: cache_pb2.GetCacheStatsRequest, context: ServicerContext
    ) -> cache_pb2.GetCacheStatsResponse:
        """Counts of the cache and of its Redis."""
        stats = await self._responses.stats()
        return cache_pb2.GetCacheStatsResponse(
            connected=stats.connected,
            num_keys=stats.num_keys,
            used_bytes=stats.used_bytes,
            max_bytes=stats.max_bytes,
            num_hits=stats.num_hits,
            num_misses=stats.num_misses,
            num_stores=stats.num_stores,
            reason=stats.reason,
        )
