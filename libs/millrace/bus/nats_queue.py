"""The intake queue of one model and priority on JetStream."""

from __future__ import annotations

import asyncio
import json
import logging

import nats.errors
import nats.js.errors
from google.protobuf.message import DecodeError
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from millrace.core.dead_letter import DeadLetter
from millrace.core.errors import ConfigError, Unavailable
from millrace.core.request import Priority, QueuedRequest
from millrace.internal.v1 import bus_pb2
from millrace.wire.requests import queued_request_from_proto

from .base import HeldRequest, WorkQueue
from .configuration import request_consumer_config
from .nats_errors import answering, raise_if_cancelled
from .nats_link import CALL_TIMEOUT_S, NatsLink, NatsSession
from .nats_publisher import MESSAGE_ID_HEADER
from .subjects import REQUEST_STREAM, request_consumer
from .verify import verify_consumer

_log = logging.getLogger(__name__)

SETTLE_TIMEOUT_S = 5.0
TRACEPARENT_HEADER = "traceparent"


class NatsWorkQueue(WorkQueue):
    """A durable pull consumer, bound anew in every session."""

    def __init__(self, link: NatsLink, model: str, priority: Priority) -> None:
        self._link = link
        self._model = model
        self._priority = priority
        self._bound: tuple[NatsSession, JetStreamContext.PullSubscription] | None = None

    async def bind(self, session: NatsSession) -> JetStreamContext.PullSubscription:
        """Raises `ConfigError` where the consumer is missing or not as it should be."""
        durable = request_consumer(self._model, self._priority)
        with answering():
            async with asyncio.timeout(CALL_TIMEOUT_S):
                try:
                    info = await session.jetstream.consumer_info(REQUEST_STREAM, durable)
                except nats.js.errors.NotFoundError as exc:
                    raise ConfigError(
                        f"no consumer {durable} for model {self._model!r}; "
                        f"run `millrace bus init --model {self._model}`"
                    ) from exc
                verify_consumer(info, request_consumer_config(self._model, self._priority))
                subscription = await session.jetstream.pull_subscribe_bind(durable, REQUEST_STREAM)
        self._bound = session, subscription
        return subscription

    async def fetch(self, max_requests: int, timeout_s: float) -> list[HeldRequest]:
        """See `WorkQueue`; one request at a time.

        The client's fetch of several waits for the rest of them until its time-out, however long
        the first has been there. One fetch takes half a millisecond, so a burst is no worse off.
        """
        session = await self._link.session()
        subscription = await self._subscription(session)
        try:
            async with asyncio.timeout(timeout_s + CALL_TIMEOUT_S):
                messages = await subscription.fetch(1, timeout=timeout_s)
        except (TimeoutError, nats.errors.TimeoutError):
            messages = []
        except (nats.errors.Error, nats.js.errors.Error) as exc:
            raise_if_cancelled()
            self._bound = None
            raise Unavailable(f"the intake queue does not answer: {exc}") from exc
        held = [NatsHeldRequest(self._link, session, self._model, each) for each in messages]
        try:
            raise_if_cancelled()
        except asyncio.CancelledError:
            for request in held:
                await request.give_back()
            raise
        return list(held)

    async def _subscription(self, session: NatsSession) -> JetStreamContext.PullSubscription:
        if self._bound is not None and self._bound[0] is session:
            return self._bound[1]
        try:
            return await self.bind(session)
        except ConfigError as error:
            # It was there at the start, and can be made again while this runs.
            raise Unavailable(error.message) from error


class NatsHeldRequest(HeldRequest):
    """A JetStream message that is neither acknowledged nor given back yet.

    It is settled in whatever session there is then, as long as the stream is still the same: a
    later stream of that name counts from one again, and would take the word for another message.
    """

    def __init__(self, link: NatsLink, session: NatsSession, model: str, message: Msg) -> None:
        self._link = link
        self._stream_created = session.stream_created
        self._reply = message.reply
        self._is_settled = False
        self.num_delivered = message.metadata.num_delivered or 1
        self.published_unix_ns = round(message.metadata.timestamp.timestamp() * 1e9)
        self.request: QueuedRequest | None = None
        self.dead_letter: DeadLetter | None = None
        headers = message.headers or {}
        try:
            proto = bus_pb2.QueuedRequest.FromString(message.data)
            self.request = queued_request_from_proto(proto, headers.get(TRACEPARENT_HEADER, ""))
        except (DecodeError, ValueError) as exc:
            self.dead_letter = DeadLetter.of_payload(
                message.data,
                request_id=headers.get(MESSAGE_ID_HEADER, ""),
                model=model,
                subject=message.subject,
                cause=f"unreadable: {type(exc).__name__}",
                num_attempts=self.num_delivered,
            )

    async def in_progress(self) -> None:
        """See `HeldRequest`."""
        await self._tell(b"+WPI", is_last=False)

    async def acknowledge(self) -> None:
        """See `HeldRequest`."""
        await self._tell(b"+ACK", is_confirmed=True)

    async def give_back(self, delay_s: float = 0.0) -> None:
        """See `HeldRequest`."""
        options = json.dumps({"delay": round(delay_s * 1e9)}).encode() if delay_s else b""
        await self._tell(b"-NAK " + options if options else b"-NAK")

    async def discard(self) -> None:
        """See `HeldRequest`."""
        await self._tell(b"+TERM", is_confirmed=True)

    async def _tell(self, word: bytes, *, is_last: bool = True, is_confirmed: bool = False) -> None:
        if self._is_settled:
            _log.debug("nats: message settled before")
            return
        session = await self._link.session()
        if session.stream_created != self._stream_created:
            _log.debug("nats: the message has gone with its stream")
            return
        with answering():
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                if is_confirmed:
                    await session.client.request(self._reply, word, timeout=SETTLE_TIMEOUT_S)
                else:
                    await session.client.publish(self._reply, word)
        self._is_settled = is_last
