"""How streams, consumers and buckets are made; `millrace bus init` writes it, services verify."""

from __future__ import annotations

from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)

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

# As in deploy/nats/nats.conf.
MAX_PAYLOAD_BYTES = 8 << 20
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


def bucket_configs() -> tuple[StreamConfig, ...]:
    """The streams below the KV buckets: the last value of each key, while it is renewed."""
    return _bucket(WORKERS_BUCKET, WORKER_TTL_S), _bucket(OWNERS_BUCKET, OWNER_TTL_S)


def _bucket(bucket: str, ttl_s: int) -> StreamConfig:
    return StreamConfig(
        name=f"KV_{bucket}",
        subjects=[f"$KV.{bucket}.>"],
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        max_age=ttl_s,
        max_msgs=-1,
        max_msgs_per_subject=1,
        duplicate_window=ttl_s,
        allow_rollup_hdrs=True,
        allow_msg_ttl=True,
        deny_delete=True,
    )
