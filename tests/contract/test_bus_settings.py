"""Every setting of streams, buckets and consumers is verified before a service starts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from nats import connect
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from millrace.bus.configuration import (
    bucket_configs,
    dead_letter_stream_config,
    request_consumer_config,
    request_stream_config,
)
from millrace.bus.nats import connect_bus
from millrace.bus.setup import init_bus
from millrace.bus.subjects import OWNERS_BUCKET, REQUEST_STREAM
from millrace.core.errors import ConfigError
from millrace.core.request import Priority
from millrace.testing.servers import LocalServer, start_nats

MODEL = "tiny"
WORKERS, OWNERS = bucket_configs()
CONSUMER = request_consumer_config(MODEL, Priority.NORMAL).durable_name or ""


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with start_nats(tmp_path_factory.mktemp("nats")) as server:
        yield server


@pytest.fixture
async def jetstream(nats: LocalServer) -> AsyncIterator[JetStreamContext]:
    """As `millrace bus init` leaves it."""
    client = await connect(nats.url)
    context = client.jetstream()
    await _wipe(context)
    await init_bus(nats.url, [MODEL])
    yield context
    await client.close()


async def _wipe(jetstream: JetStreamContext) -> None:
    for info in await jetstream.streams_info():
        await jetstream.delete_stream(info.config.name or "")


async def _start(nats: LocalServer) -> None:
    """As a scheduler starts."""
    bus = await connect_bus(nats.url, name="test")
    try:
        await bus.work_queue(MODEL, Priority.NORMAL)
    finally:
        await bus.close()


async def _make_anew(jetstream: JetStreamContext, config: StreamConfig) -> None:
    await jetstream.delete_stream(config.name or "")
    await jetstream.add_stream(config)


STREAM_CASES = [
    (request_stream_config(), "subjects", ["mr.v1.req.a"], "['mr.v1.req.a']", "['mr.v1.req.>']"),
    (request_stream_config(), "retention", RetentionPolicy.LIMITS, "'limits'", "'workqueue'"),
    (request_stream_config(), "storage", StorageType.MEMORY, "'memory'", "'file'"),
    (request_stream_config(), "discard", DiscardPolicy.OLD, "'old'", "'new'"),
    (request_stream_config(), "discard_new_per_subject", False, "False", "True"),
    (request_stream_config(), "max_age", 60, "60 s", "3660 s"),
    (request_stream_config(), "duplicate_window", 5, "5 s", "120 s"),
    (request_stream_config(), "max_msgs", -1, "unlimited", "a limit, such as 20000"),
    (request_stream_config(), "max_bytes", -1, "unlimited", "a limit, such as 1073741824"),
    (request_stream_config(), "max_msgs_per_subject", -1, "unlimited", "a limit, such as 10000"),
    (dead_letter_stream_config(), "retention", RetentionPolicy.INTEREST, "'interest'", "'limits'"),
    (dead_letter_stream_config(), "discard", DiscardPolicy.NEW, "'new'", "'old'"),
    (dead_letter_stream_config(), "max_age", 60, "60 s", "2592000 s"),
    (dead_letter_stream_config(), "max_msgs", -1, "unlimited", "a limit, such as 10000"),
    (WORKERS, "max_age", 60, "60 s", "6 s"),
    (OWNERS, "max_age", 0, "0 s", "3 s"),
    (OWNERS, "storage", StorageType.MEMORY, "'memory'", "'file'"),
    (OWNERS, "max_msgs_per_subject", 5, "5", "1"),
]


def _changed(config: StreamConfig, setting: str, value: Any) -> StreamConfig:
    changed = config.evolve(**{setting: value})
    if setting == "max_msgs_per_subject" and value == -1:
        # The one needs the other.
        changed = changed.evolve(discard_new_per_subject=False)
    if setting == "discard":
        changed = changed.evolve(discard_new_per_subject=False)
    if changed.max_age and changed.max_age < changed.duplicate_window:
        changed = changed.evolve(duplicate_window=changed.max_age)
    return changed


@pytest.mark.parametrize(
    ("config", "setting", "value", "found", "wanted"),
    STREAM_CASES,
    ids=[f"{case[0].name}-{case[1]}" for case in STREAM_CASES],
)
async def test_setting_of_a_stream_is_verified_and_named(
    nats: LocalServer,
    jetstream: JetStreamContext,
    config: StreamConfig,
    setting: str,
    value: Any,
    found: str,
    wanted: str,
) -> None:
    await _make_anew(jetstream, _changed(config, setting, value))
    what = re.escape(f"{setting} is {found}, wanted {wanted}")
    with pytest.raises(ConfigError, match=f"{what}.*; run `millrace bus init`"):
        await _start(nats)


CONSUMER_CASES = [
    ("ack_wait", 30, "30 s", "4 s"),
    ("max_deliver", 3, "3", "-1"),
    ("max_ack_pending", 10, "10", "2048"),
    ("filter_subject", "mr.v1.req.other.normal", "'mr.v1.req.other.normal'", "'mr.v1.req.tiny-"),
]


@pytest.mark.parametrize(
    ("setting", "value", "found", "wanted"), CONSUMER_CASES, ids=[c[0] for c in CONSUMER_CASES]
)
async def test_setting_of_a_consumer_is_verified_and_named(
    nats: LocalServer,
    jetstream: JetStreamContext,
    setting: str,
    value: Any,
    found: str,
    wanted: str,
) -> None:
    config = request_consumer_config(MODEL, Priority.NORMAL)
    await jetstream.delete_consumer(REQUEST_STREAM, CONSUMER)
    await jetstream.add_consumer(REQUEST_STREAM, config.evolve(**{setting: value}))
    what = re.escape(f"the consumer {CONSUMER}: {setting} is {found}, wanted {wanted}")
    with pytest.raises(ConfigError, match=f"{what}.*; run `millrace bus init`"):
        await _start(nats)


async def test_all_that_is_missing_is_named_at_once(
    nats: LocalServer, jetstream: JetStreamContext
) -> None:
    await jetstream.delete_stream("MR_V1_DLQ")
    await jetstream.delete_stream(f"KV_{OWNERS_BUCKET}")
    what = "lacks the stream MR_V1_DLQ, the bucket mr_v1_owners; run `millrace bus init`"
    with pytest.raises(ConfigError, match=what):
        await _start(nats)


async def test_init_repairs_what_can_be_repaired(
    nats: LocalServer, jetstream: JetStreamContext
) -> None:
    requests = request_stream_config().evolve(max_age=60, duplicate_window=5, max_msgs=-1)
    await jetstream.update_stream(requests)
    await jetstream.update_stream(OWNERS.evolve(max_age=60))
    consumer = request_consumer_config(MODEL, Priority.NORMAL).evolve(ack_wait=30)
    await jetstream.add_consumer(REQUEST_STREAM, consumer)
    with pytest.raises(ConfigError):
        await _start(nats)
    await init_bus(nats.url, [MODEL])
    await _start(nats)


async def test_init_says_what_it_cannot_change(
    nats: LocalServer, jetstream: JetStreamContext
) -> None:
    wrong = request_stream_config().evolve(retention=RetentionPolicy.LIMITS)
    await _make_anew(jetstream, wrong)
    with pytest.raises(ConfigError, match=f"stream {REQUEST_STREAM}: .*retention"):
        await init_bus(nats.url, [MODEL])


async def test_sizes_are_the_operators_to_choose(
    nats: LocalServer, jetstream: JetStreamContext
) -> None:
    small = request_stream_config().evolve(
        max_msgs=50, max_bytes=1_000_000, max_msgs_per_subject=20
    )
    await jetstream.update_stream(small)
    await _start(nats)
    await init_bus(nats.url, [MODEL])
    found = (await jetstream.stream_info(REQUEST_STREAM)).config
    assert (found.max_msgs, found.max_bytes, found.max_msgs_per_subject) == (50, 1_000_000, 20)


async def test_consumer_that_acknowledges_by_itself_cannot_be_made(
    jetstream: JetStreamContext,
) -> None:
    """So `ack_policy` cannot be wrong: the server refuses it on a work queue."""
    config = request_consumer_config(MODEL, Priority.NORMAL)
    await jetstream.delete_consumer(REQUEST_STREAM, CONSUMER)
    with pytest.raises(Exception, match="explicit ack"):
        await jetstream.add_consumer(REQUEST_STREAM, config.evolve(ack_policy=AckPolicy.NONE))


def test_small_payload_limit_is_said_and_served(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        start_nats(tmp_path_factory.mktemp("small"), max_payload=1 << 20) as server,
        ThreadPoolExecutor(1) as thread,
    ):
        thread.submit(lambda: asyncio.run(init_bus(server.url, [MODEL]))).result(10)
        thread.submit(lambda: asyncio.run(_start(server))).result(10)
    assert "is 1048576, wanted 8388608" in caplog.text


async def test_store_that_is_too_small_is_a_config_error(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("tiny-store")
    with (
        start_nats(folder, max_file_store=1 << 20) as server,
        pytest.raises(ConfigError, match=f"{REQUEST_STREAM}: insufficient storage"),
    ):
        await init_bus(server.url, [MODEL])
