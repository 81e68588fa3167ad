"""The bus over a real NATS server with JetStream."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import nats.errors
import nats.js.errors
from google.protobuf.message import Message
from nats.js.kv import KeyValue

from millrace.core.dead_letter import DeadLetter
from millrace.core.membership import SchedulerOwner, WorkerLoad, WorkerRegistration
from millrace.core.request import Priority, QueuedRequest
from millrace.core.url import NatsUrl
from millrace.internal.v1 import bus_pb2
from millrace.wire.dead_letters import dead_letter_to_proto
from millrace.wire.membership import (
    scheduler_owner_from_proto,
    worker_load_to_proto,
    worker_registration_from_proto,
    worker_registration_to_proto,
)
from millrace.wire.requests import queued_request_to_proto

from . import nats_owners
from .base import Bus, IntakeLoad, WorkQueue
from .configuration import OWNER_TTL_S, WORKER_TTL_S
from .nats_address import nats_address
from .nats_entries import unsubscribe_quietly, watch_entries
from .nats_errors import answering
from .nats_link import CALL_TIMEOUT_S, NatsLink, NatsSession
from .nats_publisher import NatsPublisher
from .nats_queue import NatsWorkQueue
from .subjects import (
    ALL_ABORTS,
    DEAD_LETTER_STREAM,
    REQUEST_STREAM,
    abort_subject,
    dead_letter_subject,
    load_subject,
    request_consumer,
    request_subject,
)

_log = logging.getLogger(__name__)

RETRY_S = 0.2


async def connect_bus(url: NatsUrl | str, *, name: str, timeout_s: float = 10.0) -> NatsBus:
    """Connects and verifies what `millrace bus init` made; keeps trying for `timeout_s`.

    Raises `ConfigError` where the server does not answer, or where JetStream, a stream or a bucket
    is missing or has other settings. What is lost later is connected again, and verified again.
    """
    return NatsBus(await NatsLink.open(nats_address(url), name, timeout_s))


class NatsBus(Bus):
    """Made by `connect_bus`.

    Every call fails with `Unavailable` where the server does not answer in `CALL_TIMEOUT_S`, or at
    once where the connection is lost; iterators and queues go on by themselves.
    """

    def __init__(self, link: NatsLink) -> None:
        self._link = link
        self._requests = NatsPublisher(link, REQUEST_STREAM)
        self._dead_letters = NatsPublisher(link, DEAD_LETTER_STREAM)

    @property
    def is_connected(self) -> bool:
        """True while the server answers."""
        return self._link.is_connected

    async def publish_request(self, request: QueuedRequest, headers: Mapping[str, str]) -> None:
        """See `Bus`."""
        await self._requests.publish(
            request_subject(request.model, request.priority),
            queued_request_to_proto(request).SerializeToString(),
            request.request_id,
            headers,
        )

    async def work_queue(self, model: str, priority: Priority) -> WorkQueue:
        """See `Bus`."""
        queue = NatsWorkQueue(self._link, model, priority)
        await queue.bind(await self._link.session())
        return queue

    async def intake_load(self, model: str) -> IntakeLoad:
        """See `Bus`."""
        async with self._answering() as session:
            stream = await session.jetstream.stream_info(REQUEST_STREAM)
            pending = {}
            for priority in Priority:
                durable = request_consumer(model, priority)
                info = await session.jetstream.consumer_info(REQUEST_STREAM, durable)
                pending[priority] = info.num_pending or 0
        limits = stream.config
        return IntakeLoad(
            stream.state.messages,
            stream.state.bytes,
            max(0, limits.max_msgs or 0),
            max(0, limits.max_bytes or 0),
            pending,
        )

    async def publish_abort(self, request_id: str) -> None:
        """See `Bus`."""
        cancellation = bus_pb2.Cancellation(request_id=request_id)
        await self._send(abort_subject(request_id), cancellation)

    async def aborts(self) -> AsyncIterator[str]:
        """See `Bus`. What is told while the connection is lost is lost."""
        while True:
            session = await self._link.next_session()
            try:
                subscription = await session.client.subscribe(ALL_ABORTS)
            except (OSError, nats.errors.Error) as exc:
                _log.debug("nats: not subscribed: %s", repr(exc))
                await asyncio.sleep(RETRY_S)
                continue
            try:
                async for message in subscription.messages:
                    yield message.subject.rsplit(".", 1)[1]
            finally:
                await unsubscribe_quietly(subscription.unsubscribe)
            if self._link.is_current(session):
                await asyncio.sleep(RETRY_S)

    async def publish_dead_letter(self, letter: DeadLetter) -> None:
        """See `Bus`."""
        await self._dead_letters.publish(
            dead_letter_subject(letter.model),
            dead_letter_to_proto(letter).SerializeToString(),
            letter.request_id or letter.payload_hash.hex(),
            None,
        )

    async def register_worker(self, registration: WorkerRegistration) -> None:
        """See `Bus`."""
        async with self._answering() as session:
            value = worker_registration_to_proto(registration).SerializeToString()
            await session.workers.put(registration.worker_id, value)

    async def unregister_worker(self, worker_id: str) -> None:
        """See `Bus`."""
        async with self._answering() as session:
            await session.workers.delete(worker_id)

    async def publish_load(self, load: WorkerLoad) -> None:
        """See `Bus`."""
        await self._send(load_subject(load.worker_id), worker_load_to_proto(load))

    async def workers(self) -> AsyncIterator[tuple[str, WorkerRegistration | None]]:
        """See `Bus`."""
        entries = watch_entries(
            self._link,
            _workers_of,
            WORKER_TTL_S,
            lambda raw: worker_registration_from_proto(bus_pb2.WorkerRegistration.FromString(raw)),
        )
        async for key, entry in entries:
            yield key, entry

    async def claim_ownership(self, owner: SchedulerOwner) -> int | None:
        """See `Bus`."""
        async with self._answering() as session:
            return await nats_owners.claim(session.owners, owner)

    async def release_ownership(self, owner: SchedulerOwner) -> None:
        """See `Bus`."""
        async with self._answering() as session:
            await nats_owners.release(session.owners, owner)

    async def owners(self) -> AsyncIterator[tuple[str, SchedulerOwner | None]]:
        """See `Bus`."""
        entries = watch_entries(
            self._link,
            _owners_of,
            OWNER_TTL_S,
            lambda raw: scheduler_owner_from_proto(bus_pb2.SchedulerOwner.FromString(raw)),
        )
        async for key, entry in entries:
            yield key, entry if entry is not None and entry.scheduler_id else None

    async def close(self) -> None:
        """See `Bus`."""
        await self._link.close()

    async def _send(self, subject: str, message: Message) -> None:
        async with self._answering() as session:
            await session.client.publish(subject, message.SerializeToString())

    @asynccontextmanager
    async def _answering(self) -> AsyncIterator[NatsSession]:
        """The session, for one call. Raises `Unavailable` where it fails or takes too long."""
        session = await self._link.session()
        with answering():
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    yield session
            except nats.js.errors.NoStreamResponseError:
                self._link.doubt(session, "the NATS server has lost a bucket")
                raise


def _workers_of(session: NatsSession) -> KeyValue:
    return session.workers


def _owners_of(session: NatsSession) -> KeyValue:
    return session.owners
