"""`millrace bus init`: makes stream, consumers and buckets. Services only verify them."""

from __future__ import annotations

from collections.abc import Sequence

import nats
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    KeyValueConfig,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import NotFoundError

from millrace.core.errors import ConfigError
from millrace.core.request import Priority

from .subjects import (
    DEAD_LETTER_STREAM,
    DEAD_LETTER_SUBJECTS,
    OWNERS_BUCKET,
    REQUEST_STREAM,
    REQUEST_SUBJECTS,
    WORKERS_BUCKET,
    request_consumer,
    request_subject,
)

MAX_QUEUED_REQUESTS = 20_000
MAX_QUEUED_REQUESTS_PER_SUBJECT = 10_000
MAX_QUEUED_BYTES = 1 << 30
# The longest deadline and a minute: nobody waits for an older request.
MAX_AGE_S = 3_660
MAX_DEAD_LETTERS = 10_000
MAX_DEAD_LETTER_AGE_S = 30 * 86_400
DUPLICATE_WINDOW_S = 120
# With OWNER_TTL_S: within 5 s of a scheduler's death its successor has the model and the requests.
ACK_WAIT_S = 4
# The waiting window and every running row.
MAX_ACK_PENDING = 2_048
WORKER_TTL_S = 6
OWNER_TTL_S = 3


def request_stream_config() -> StreamConfig:
    """A work queue on disk that refuses new requests when it is full, and loses none."""
    return StreamConfig(
        name=REQUEST_STREAM,
        subjects=[REQUEST_SUBJECTS],
        retention=RetentionPolicy.WORK_QUEUE,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        discard_new_per_subject=True,
        max_msgs=MAX_QUEUED_REQUESTS,
        max_msgs_per_subject=MAX_QUEUED_REQUESTS_PER_SUBJECT,
        max_bytes=MAX_QUEUED_BYTES,
        max_age=MAX_AGE_S,
        duplicate_window=DUPLICATE_WINDOW_S,
    )


def dead_letter_stream_config() -> StreamConfig:
    """The last records, for people to read; the oldest make room."""
    return StreamConfig(
        name=DEAD_LETTER_STREAM,
        subjects=[DEAD_LETTER_SUBJECTS],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        max_msgs=MAX_DEAD_LETTERS,
        max_age=MAX_DEAD_LETTER_AGE_S,
        duplicate_window=DUPLICATE_WINDOW_S,
    )


def request_consumer_config(model: str, priority: Priority) -> ConsumerConfig:
    """One durable per model and priority, shared by the active scheduler and its standbys."""
    return ConsumerConfig(
        durable_name=request_consumer(model, priority),
        filter_subject=request_subject(model, priority),
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ACK_WAIT_S,
        max_deliver=-1,
        max_ack_pending=MAX_ACK_PENDING,
    )


async def init_bus(url: str, models: Sequence[str] = ()) -> None:
    """Creates or updates everything; safe to repeat. `models` get their consumers.

    Raises `ConfigError` where the server has no JetStream or cannot be reached.
    """
    try:
        client = await nats.connect(url, connect_timeout=5, allow_reconnect=False)
    except Exception as exc:
        raise ConfigError(f"no NATS server answers at {url}: {exc}") from exc
    try:
        jetstream = client.jetstream()
        await verify_jetstream(jetstream, url)
        await _create_or_update(jetstream, REQUEST_STREAM, request_stream_config())
        await _create_or_update(jetstream, DEAD_LETTER_STREAM, dead_letter_stream_config())
        await _create_or_update_bucket(jetstream, WORKERS_BUCKET, WORKER_TTL_S)
        await _create_or_update_bucket(jetstream, OWNERS_BUCKET, OWNER_TTL_S)
        for model in models:
            for priority in Priority:
                await jetstream.add_consumer(
                    REQUEST_STREAM, request_consumer_config(model, priority)
                )
    finally:
        await client.close()


async def verify_jetstream(jetstream: JetStreamContext, url: str) -> None:
    """Raises `ConfigError` where the server runs without JetStream."""
    try:
        await jetstream.account_info()
    except Exception as exc:
        raise ConfigError(
            f"the NATS server at {url} has no JetStream; start it with -js or a jetstream block"
        ) from exc


async def _create_or_update(jetstream: JetStreamContext, name: str, config: StreamConfig) -> None:
    try:
        await jetstream.stream_info(name)
    except NotFoundError:
        await jetstream.add_stream(config)
    else:
        await jetstream.update_stream(config)


async def _create_or_update_bucket(jetstream: JetStreamContext, bucket: str, ttl_s: int) -> None:
    try:
        config = (await jetstream.stream_info(f"KV_{bucket}")).config
    except NotFoundError:
        await jetstream.create_key_value(
            KeyValueConfig(bucket=bucket, ttl=ttl_s, history=1, storage=StorageType.FILE)
        )
    else:
        config.max_age = config.duplicate_window = ttl_s
        await jetstream.update_stream(config)
