"""The gRPC edge of the cache: convert, call, convert."""

from __future__ import annotations

import grpc
from google.protobuf.message import DecodeError

from millrace.core.errors import InvalidRequest
from millrace.internal.v1 import cache_pb2, cache_pb2_grpc

from .responses import ResponseCache

ServicerContext = grpc.aio.ServicerContext[object, object]


class CacheServicer(cache_pb2_grpc.CacheServiceServicer):
    """Serves one response cache."""

    def __init__(self, responses: ResponseCache) -> None:
        self._responses = responses

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
        )
