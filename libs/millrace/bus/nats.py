"""The bus over a real NATS server with JetStream."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any

import nats
import nats.errors
import nats.js.errors
from google.protobuf.message import Message
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.kv import KeyValue

from millrace.core.dead_letter import DeadLetter
from millrace.core.errors import (
    ConfigError,
    PayloadTooLarge,
)
from millrace.core.membership import SchedulerOwner, WorkerLoad, WorkerRegistration
from millrace.core.model import model_slug
from millrace.core.request import Priority, QueuedRequest
from millrace.internal.v1 import bus_pb2
from millrace.wire.dead_letters import dead_letter_to_proto
from millrace.wire.membership import (
    scheduler_owner_from_proto,
    scheduler_owner_to_proto,
    worker_load_to_proto,
    worker_registration_from_proto,
    worker_registration_to_proto,
)
from millrace.wire.requests import queued_request_to_proto

from .base import Bus, WorkQueue
from .nats_entries import unsubscribe_quietly, watch_entries
from .nats_errors import answering, publish_error, raise_if_cancelled
from .nats_queue import NatsWorkQueue
from .setup import OWNER_TTL_S, WORKER_TTL_S, verify_jetstream
from .subjects import (
    ALL_ABORTS,
    DEAD_LETTER_STREAM,
    OWNERS_BUCKET,
    REQUEST_STREAM,
    WORKERS_BUCKET,
    abort_subject,
    dead_letter_subject,
    load_subject,
    request_consumer,
    request_subject,
)

_log = logging.getLogger(__name__)

PUBLISH_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 2.0
PING_INTERVAL_S = 5
RECONNECT_WAIT_S = 0.2
# Room for the subject, the headers and the protocol's own words beside the payload.
HEADER_ALLOWANCE_BYTES = 4096
MESSAGE_ID_HEADER = "Nats-Msg-Id"


async def connect_bus(url: str, *, name: str, timeout_s: float = 10.0) -> NatsBus:
    """Connects and verifies what `millrace bus init` made; keeps trying for `timeout_s`.

    Raises `ConfigError` where the server does not answer, or lacks JetStream, stream or bucket.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            client = Client()
            await client.connect(
                url,
                name=name,
                connect_timeout=2,
                max_reconnect_attempts=-1,
                reconnect_time_wait=RECONNECT_WAIT_S,  # type: ignore[arg-type]
                ping_interval=PING_INTERVAL_S,
                max_outstanding_pings=2,
                inbox_prefix=f"_INBOX_{name}".encode(),
                error_cb=_log_error,
                disconnected_cb=_disconnect_logger(client),
                reconnected_cb=_log_reconnect,
            )
            break
        except (OSError, nats.errors.Error, TimeoutError) as exc:
            if time.monotonic() > deadline:
                raise ConfigError(f"no NATS server answers at {url}: {exc}") from exc
            await asyncio.sleep(0.1)
    try:
        return await _verified_bus(client, url)
    except BaseException:
        await client.close()
        raise


async def _verified_bus(client: Client, url: str) -> NatsBus:
    jetstream = client.jetstream(timeout=PUBLISH_TIMEOUT_S)
    await verify_jetstream(jetstream, url)
    try:
        for stream in (REQUEST_STREAM, DEAD_LETTER_STREAM):
            await jetstream.stream_info(stream)
        workers = await jetstream.key_value(WORKERS_BUCKET)
        owners = await jetstream.key_value(OWNERS_BUCKET)
    except nats.js.errors.NotFoundError as exc:
        raise ConfigError(
            f"the NATS server at {url} lacks one of the streams {REQUEST_STREAM}, "
            f"{DEAD_LETTER_STREAM} or of the buckets {WORKERS_BUCKET}, {OWNERS_BUCKET}; "
            "run `millrace bus init`"
        ) from exc
    return NatsBus(client, jetstream, workers, owners)


async def _log_error(exc: Exception) -> None:
    # Each try to connect again fails with one; that the connection is lost has been said.
    level = logging.DEBUG if isinstance(exc, OSError) else logging.WARNING
    _log.log(level, "nats: %s: %s", type(exc).__name__, exc)


def _disconnect_logger(client: Client) -> Callable[[], Coroutine[Any, Any, None]]:
    async def log_disconnect() -> None:
        # Called after our own close too, which is nothing to tell.
        if not client.is_closed:
            _log.warning("nats: disconnected")

    return log_disconnect


async def _log_reconnect() -> None:
    _log.info("nats: connected again")


class NatsBus(Bus):
    """One connection; made by `connect_bus`."""

    def __init__(
        self, client: Client, jetstream: JetStreamContext, workers: KeyValue, owners: KeyValue
    ) -> None:
        self._client = client
        self._jetstream = jetstream
        self._workers = workers
        self._owners = owners

    @property
    def is_connected(self) -> bool:
        """True while the server answers."""
        return bool(self._client.is_connected)

    async def publish_request(self, request: QueuedRequest, headers: Mapping[str, str]) -> None:
        """See `Bus`."""
        payload = queued_request_to_proto(request).SerializeToString()
        limit = self._client.max_payload - HEADER_ALLOWANCE_BYTES
        if len(payload) > limit:
            raise PayloadTooLarge(
                f"the request has {len(payload)} bytes on the queue; the limit is {limit}",
                metadata={"value": str(len(payload)), "max": str(limit)},
            )
        try:
            await self._jetstream.publish(
                request_subject(request.model, request.priority),
                payload,
                timeout=PUBLISH_TIMEOUT_S,
                stream=REQUEST_STREAM,
                headers={**headers, MESSAGE_ID_HEADER: request.request_id},
            )
        except Exception as exc:
            raise publish_error(exc) from exc
        # The request of a client that has left meanwhile would run, with nobody to read it.
        raise_if_cancelled()

    async def work_queue(self, model: str, priority: Priority) -> WorkQueue:
        """See `Bus`."""
        durable = request_consumer(model, priority)
        with answering():
            try:
                await self._jetstream.consumer_info(REQUEST_STREAM, durable)
            except nats.js.errors.NotFoundError as exc:
                raise ConfigError(
                    f"no consumer {durable} for model {model!r}; "
                    f"run `millrace bus init --model {model}`"
                ) from exc
            subscription = await self._jetstream.pull_subscribe_bind(durable, REQUEST_STREAM)
        return NatsWorkQueue(subscription)

    async def publish_abort(self, request_id: str) -> None:
        """See `Bus`."""
        cancellation = bus_pb2.Cancellation(request_id=request_id)
        with answering():
            await self._client.publish(abort_subject(request_id), cancellation.SerializeToString())

    async def aborts(self) -> AsyncIterator[str]:
        """See `Bus`."""
        subscription = await self._client.subscribe(ALL_ABORTS)
        try:
            async for message in subscription.messages:
                yield message.subject.rsplit(".", 1)[1]
        finally:
            await unsubscribe_quietly(subscription.unsubscribe)

    async def publish_dead_letter(self, letter: DeadLetter) -> None:
        """See `Bus`."""
        try:
            await self._jetstream.publish(
                dead_letter_subject(letter.model),
                dead_letter_to_proto(letter).SerializeToString(),
                timeout=PUBLISH_TIMEOUT_S,
                stream=DEAD_LETTER_STREAM,
                headers={MESSAGE_ID_HEADER: letter.request_id},
            )
        except Exception as exc:
            raise publish_error(exc) from exc

    async def register_worker(self, registration: WorkerRegistration) -> None:
        """See `Bus`."""
        await self._put(
            self._workers, registration.worker_id, worker_registration_to_proto(registration)
        )

    async def unregister_worker(self, worker_id: str) -> None:
        """See `Bus`."""
        with answering():
            await self._workers.delete(worker_id)

    async def publish_load(self, load: WorkerLoad) -> None:
        """See `Bus`."""
        payload = worker_load_to_proto(load).SerializeToString()
        with answering():
            await self._client.publish(load_subject(load.worker_id), payload)

    async def workers(self) -> AsyncIterator[tuple[str, WorkerRegistration | None]]:
        """See `Bus`."""
        entries = watch_entries(
            self._client,
            self._workers,
            WORKER_TTL_S,
            lambda raw: worker_registration_from_proto(bus_pb2.WorkerRegistration.FromString(raw)),
        )
        async for key, entry in entries:
            yield key, entry

    async def claim_ownership(self, owner: SchedulerOwner) -> int | None:
        """See `Bus`."""
        with answering():
            return await self._claim(owner)

    async def _claim(self, owner: SchedulerOwner) -> int | None:
        key = model_slug(owner.model)
        try:
            entry = await self._owners.get(key)
        except nats.js.errors.KeyNotFoundError:
            revision, previous = 0, None
        else:
            revision = entry.revision or 0
            previous = scheduler_owner_from_proto(
                bus_pb2.SchedulerOwner.FromString(entry.value or b"")
            )
        epoch = owner.owner_epoch
        if previous is not None and previous.scheduler_id:
            if previous.scheduler_id != owner.scheduler_id:
                return None
            epoch = max(previous.owner_epoch, epoch)
        elif previous is not None:
            epoch = max(previous.owner_epoch + 1, epoch)
        claimed = SchedulerOwner(owner.scheduler_id, epoch, owner.advertise_address, owner.model)
        value = scheduler_owner_to_proto(claimed).SerializeToString()
        try:
            if previous is None:
                await self._owners.create(key, value)
            else:
                await self._owners.update(key, value, last=revision)
        except nats.js.errors.KeyWrongLastSequenceError:
            return None
        return epoch

    async def release_ownership(self, owner: SchedulerOwner) -> None:
        """Leaves the epoch behind without a holder, so that the next one is higher."""
        key = model_slug(owner.model)
        with answering():
            try:
                entry = await self._owners.get(key)
            except nats.js.errors.KeyNotFoundError:
                return
            raw = bus_pb2.SchedulerOwner.FromString(entry.value or b"")
            held = scheduler_owner_from_proto(raw)
            if held.scheduler_id != owner.scheduler_id:
                return
            vacant = SchedulerOwner("", held.owner_epoch, "", owner.model)
            value = scheduler_owner_to_proto(vacant).SerializeToString()
            with suppress(nats.js.errors.KeyWrongLastSequenceError):
                # Somebody else has it already.
                await self._owners.update(key, value, last=entry.revision)

    async def owners(self) -> AsyncIterator[tuple[str, SchedulerOwner | None]]:
        """See `Bus`."""
        entries = watch_entries(
            self._client,
            self._owners,
            OWNER_TTL_S,
            lambda raw: scheduler_owner_from_proto(bus_pb2.SchedulerOwner.FromString(raw)),
        )
        async for key, entry in entries:
            yield key, entry if entry is not None and entry.scheduler_id else None

    async def close(self) -> None:
        """See `Bus`."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._client.close()
        except (OSError, RuntimeError, TimeoutError, nats.errors.Error) as exc:
            # Nothing is left to say to a server that is away. RuntimeError: uvloop, transport gone.
            _log.info("nats: closed without a server: %s", exc)

    async def _put(self, bucket: KeyValue, key: str, message: Message) -> None:
        with answering():
            await bucket.put(key, message.SerializeToString())
