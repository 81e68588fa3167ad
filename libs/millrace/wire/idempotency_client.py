"""The gateway's end of the idempotency keys: unlike the response cache, it never guesses."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

import grpc

from millrace.core.errors import Unavailable
from millrace.core.idempotency import IdempotencyRecord
from millrace.internal.v1 import cache_pb2, cache_pb2_grpc

from .cache_client import answer_from_message, answer_to_message
from .status import error_from_rpc

TIMEOUT_S = 1.0
RETRY_AFTER_S = 1.0

T = TypeVar("T")


class IdempotencyClient:
    """Every call ends within `timeout_s`. Raises `Unavailable` where the outcome is not known."""

    def __init__(self, channel: grpc.aio.Channel, *, timeout_s: float = TIMEOUT_S) -> None:
        self._stub: cache_pb2_grpc.CacheServiceAsyncStub = cache_pb2_grpc.CacheServiceStub(channel)
        self._timeout_s = timeout_s

    async def claim(
        self, key: bytes, record: IdempotencyRecord, hold_s: float
    ) -> IdempotencyRecord | None:
        """Takes a free key for `hold_s`, None then; else the record of the request that has it."""
        request = cache_pb2.ClaimKeyRequest(
            key=key, record=record_to_proto(record), hold_ms=max(1, round(hold_s * 1000))
        )
        response = await self._answer_of(self._stub.ClaimKey(request, timeout=self._timeout_s))
        return record_from_proto(response.holder) if response.HasField("holder") else None

    async def finish(self, key: bytes, record: IdempotencyRecord) -> bool:
        """Keeps the record of a request that ended well; False where the key is another's."""
        request = cache_pb2.FinishKeyRequest(key=key, record=record_to_proto(record))
        response = await self._answer_of(self._stub.FinishKey(request, timeout=self._timeout_s))
        return response.kept

    async def free(self, key: bytes, request_id: str) -> bool:
        """Gives a key back; False where the request did not hold it."""
        request = cache_pb2.FreeKeyRequest(key=key, request_id=request_id)
        response = await self._answer_of(self._stub.FreeKey(request, timeout=self._timeout_s))
        return response.freed

    async def _answer_of(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as exc:
            # Whatever the reason: the caller cannot know whether the key is free.
            reason = error_from_rpc(exc, "the cache service").message
            raise Unavailable(
                "what this idempotency key stands for cannot be known now, so nothing was run: "
                f"{reason}",
                field="idempotency_key",
                retry_after_s=RETRY_AFTER_S,
            ) from exc


def record_to_proto(record: IdempotencyRecord) -> cache_pb2.IdempotencyRecord:
    """The record as it travels and lies in Redis."""
    return cache_pb2.IdempotencyRecord(
        body_hash=record.body_hash,
        request_id=record.request_id,
        gateway_id=record.gateway_id,
        state=(
            cache_pb2.IDEMPOTENCY_STATE_FINISHED
            if record.is_finished
            else cache_pb2.IDEMPOTENCY_STATE_RUNNING
        ),
        model=record.model,
        revision=record.revision,
        seed=record.seed,
        answer=None if record.answer is None else answer_to_message(record.answer),
    )


def record_from_proto(message: cache_pb2.IdempotencyRecord) -> IdempotencyRecord:
    """The record; an answer that does not fit together counts as not kept."""
    return IdempotencyRecord(
        body_hash=message.body_hash,
        request_id=message.request_id,
        gateway_id=message.gateway_id,
        is_finished=message.state == cache_pb2.IDEMPOTENCY_STATE_FINISHED,
        model=message.model,
        revision=message.revision,
        seed=message.seed,
        answer=answer_from_message(message.answer) if message.HasField("answer") else None,
    )
