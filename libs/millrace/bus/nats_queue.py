"""The intake queue of one model and priority on JetStream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import nats.errors
import nats.js.errors
from google.protobuf.message import DecodeError
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from millrace.core.errors import Unavailable
from millrace.core.request import QueuedRequest
from millrace.internal.v1 import bus_pb2
from millrace.wire.requests import queued_request_from_proto

from .base import HeldRequest, WorkQueue
from .nats_errors import raise_if_cancelled

_log = logging.getLogger(__name__)

SETTLE_TIMEOUT_S = 5.0
TRACEPARENT_HEADER = "traceparent"


class NatsWorkQueue(WorkQueue):
    """A durable pull consumer."""

    def __init__(self, subscription: JetStreamContext.PullSubscription) -> None:
        self._subscription = subscription

    async def fetch(self, max_requests: int, timeout_s: float) -> list[HeldRequest]:
        """See `WorkQueue`; one request at a time.

        The client's fetch of several waits for the rest of them until its time-out, however long
        the first has been there. One fetch takes half a millisecond, so a burst is no worse off.
        """
        try:
            messages = await self._subscription.fetch(1, timeout=timeout_s)
        except (TimeoutError, nats.errors.TimeoutError):
            messages = []
        except (nats.errors.Error, nats.js.errors.Error) as exc:
            raise_if_cancelled()
            raise Unavailable(f"the intake queue does not answer: {exc}") from exc
        held = [NatsHeldRequest(message) for message in messages]
        try:
            raise_if_cancelled()
        except asyncio.CancelledError:
            for request in held:
                await request.give_back()
            raise
        return list(held)


class NatsHeldRequest(HeldRequest):
    """A JetStream message that is neither acknowledged nor given back yet."""

    def __init__(self, message: Msg) -> None:
        self._message = message
        self.num_delivered = message.metadata.num_delivered or 1
        self.published_unix_ns = round(message.metadata.timestamp.timestamp() * 1e9)
        self.request: QueuedRequest | None = None
        try:
            proto = bus_pb2.QueuedRequest.FromString(message.data)
            traceparent = (message.headers or {}).get(TRACEPARENT_HEADER, "")
            self.request = queued_request_from_proto(proto, traceparent)
        except (DecodeError, ValueError) as exc:
            _log.error("intake: unreadable request of %d bytes: %s", len(message.data), exc)

    async def in_progress(self) -> None:
        """See `HeldRequest`."""
        await _settled(self._message.in_progress())

    async def acknowledge(self) -> None:
        """See `HeldRequest`."""
        await _settled(self._message.ack_sync(timeout=SETTLE_TIMEOUT_S))

    async def give_back(self, delay_s: float = 0.0) -> None:
        """See `HeldRequest`."""
        await _settled(self._message.nak(delay=delay_s or None))

    async def discard(self) -> None:
        """See `HeldRequest`."""
        await _settled(self._message.term())


async def _settled(settlement: Coroutine[Any, Any, object]) -> None:
    try:
        await settlement
    except nats.errors.MsgAlreadyAckdError:
        _log.debug("nats: message settled before")
    except (nats.errors.Error, nats.js.errors.Error, TimeoutError) as exc:
        raise Unavailable(f"the intake queue does not answer: {type(exc).__name__}") from exc
