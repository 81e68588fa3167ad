"""One contract, two buses: in one process, and over a real NATS server with JetStream."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import TypeVar

import pytest
from nats import connect

from millrace.bus.base import Bus, HeldRequest
from millrace.bus.configuration import ACK_WAIT_S, OWNER_TTL_S, request_consumer_config
from millrace.bus.memory import MemoryBus
from millrace.bus.nats import connect_bus
from millrace.bus.setup import init_bus
from millrace.bus.subjects import OWNERS_BUCKET, REQUEST_STREAM, request_consumer
from millrace.core.dead_letter import DeadLetter
from millrace.core.errors import ConfigError, Overloaded, PayloadTooLarge
from millrace.core.membership import SchedulerOwner, WorkerRegistration
from millrace.core.model import ModelInfo, model_slug
from millrace.core.request import Priority, QueuedRequest
from millrace.core.sampling import SamplingSpec
from millrace.internal.v1 import bus_pb2
from millrace.testing.servers import LocalServer, start_nats
from millrace.wire.dead_letters import dead_letter_from_proto

T = TypeVar("T")

MODEL = "tiny"
WAIT_S = 5.0
INFO = ModelInfo(name=MODEL, revision="r", dtype="float32", max_model_len=64, vocab_size=9)


def _request(number: int, model: str = MODEL, num_tokens: int = 3) -> QueuedRequest:
    return QueuedRequest(
        request_id=f"{number:032x}",
        gateway_id="gw",
        model=model,
        prompt_token_ids=[7] * num_tokens,
        sampling=SamplingSpec(),
        stop_token_ids=(),
        max_tokens=4,
        num_choices=1,
        priority=Priority.NORMAL,
        deadline_unix_ms=0,
        arrival_unix_ns=0,
    )


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    with start_nats(tmp_path_factory.mktemp("nats")) as server:
        # The fixture may be asked for inside a running event loop: its own loop needs a thread.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: asyncio.run(init_bus(server.url, [MODEL]))).result(WAIT_S)
        yield server


@pytest.fixture(params=["memory", "nats"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    if request.param == "memory":
        yield MemoryBus()
        return
    server: LocalServer = request.getfixturevalue("nats")
    connected = await connect_bus(server.url, name="test")
    yield connected
    await _drain(connected)
    await connected.close()


async def _drain(bus: Bus) -> None:
    queue = await bus.work_queue(MODEL, Priority.NORMAL)
    while batch := await queue.fetch(100, 0.1):
        for held in batch:
            await held.acknowledge()


async def _fetch(bus: Bus, max_requests: int = 10) -> list[HeldRequest]:
    queue = await bus.work_queue(MODEL, Priority.NORMAL)
    return await queue.fetch(max_requests, WAIT_S)


async def _first(source: AsyncIterator[T]) -> T:
    async with asyncio.timeout(WAIT_S):
        return await anext(source)


async def test_load_tells_what_lies_on_the_queue_and_what_nobody_has_fetched(bus: Bus) -> None:
    queue = await bus.work_queue(MODEL, Priority.NORMAL)
    for number in (30, 31, 32):
        await bus.publish_request(_request(number), {})
    (held,) = await queue.fetch(1, WAIT_S)

    load = await bus.intake_load(MODEL)

    assert load.num_messages == 3
    assert load.num_pending == {Priority.HIGH: 0, Priority.NORMAL: 2, Priority.LOW: 0}
    assert 0 < load.usage < 0.01
    if not isinstance(bus, MemoryBus):
        assert load.num_bytes > 100
    await held.acknowledge()
    assert (await bus.intake_load(MODEL)).num_messages == 2


async def test_published_request_arrives_with_its_trace_context(bus: Bus) -> None:
    await bus.publish_request(_request(1), {"traceparent": "00-ab-cd-01"})
    (held,) = await _fetch(bus)
    assert held.request == replace(_request(1), traceparent="00-ab-cd-01")
    assert held.num_delivered == 1
    await held.acknowledge()


async def test_request_given_back_is_delivered_again_and_counted(bus: Bus) -> None:
    await bus.publish_request(_request(2), {})
    (held,) = await _fetch(bus)
    await held.give_back()
    (again,) = await _fetch(bus)
    assert (again.request, again.num_delivered) == (_request(2), 2)
    await again.acknowledge()


async def test_acknowledged_request_is_gone(bus: Bus) -> None:
    await bus.publish_request(_request(3), {})
    (held,) = await _fetch(bus)
    await held.in_progress()
    await held.acknowledge()
    queue = await bus.work_queue(MODEL, Priority.NORMAL)
    assert await queue.fetch(1, 0.1) == []


async def test_priorities_have_queues_of_their_own(bus: Bus) -> None:
    await bus.publish_request(replace(_request(4), priority=Priority.HIGH), {})
    low = await bus.work_queue(MODEL, Priority.LOW)
    assert await low.fetch(1, 0.1) == []
    high = await bus.work_queue(MODEL, Priority.HIGH)
    (held,) = await high.fetch(1, WAIT_S)
    await held.acknowledge()


async def test_watcher_sees_workers_come_and_go(bus: Bus) -> None:
    registration = WorkerRegistration("w1", "boot", "127.0.0.1:1", INFO, 8, 32, 4)
    await bus.register_worker(registration)
    workers = bus.workers()
    assert await _first(workers) == ("w1", registration)
    await bus.register_worker(replace(registration, boot_id="boot2"))
    assert await _first(workers) == ("w1", replace(registration, boot_id="boot2"))
    await bus.unregister_worker("w1")
    assert await _first(workers) == ("w1", None)
    await workers.aclose()  # type: ignore[attr-defined]


async def test_model_has_one_owner_at_a_time_and_epochs_rise(bus: Bus) -> None:
    first = SchedulerOwner("a", 100, "127.0.0.1:1", "owned")
    second = SchedulerOwner("b", 50, "127.0.0.1:2", "owned")
    assert await bus.claim_ownership(first) == 100
    assert await bus.claim_ownership(first) == 100
    assert await bus.claim_ownership(second) is None
    await bus.release_ownership(second)
    assert await bus.claim_ownership(second) is None
    await bus.release_ownership(first)
    epoch = await bus.claim_ownership(replace(second, owner_epoch=150))
    assert epoch is not None and epoch > 100
    owners = bus.owners()
    while (entry := await _first(owners))[0] != model_slug("owned"):
        continue
    assert entry[1] == replace(second, owner_epoch=epoch)
    await owners.aclose()  # type: ignore[attr-defined]
    await bus.release_ownership(second)


async def test_abort_by_id_reaches_every_listener(bus: Bus) -> None:
    aborts = bus.aborts()
    heard = asyncio.create_task(_first(aborts))
    while not heard.done():
        await bus.publish_abort("ab" * 16)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(heard), 0.05)
    assert heard.result() == "ab" * 16
    await aborts.aclose()  # type: ignore[attr-defined]


async def test_dead_letter_is_kept_on_a_stream_of_its_own(nats: LocalServer) -> None:
    letter = DeadLetter.of(_request(1), reason="INTERNAL", cause="worker death", num_attempts=3)
    bus = await connect_bus(nats.url, name="test")
    await bus.publish_dead_letter(letter)
    client = await connect(nats.url)
    message = await client.jetstream().get_last_msg("MR_V1_DLQ", f"mr.v1.dlq.{model_slug(MODEL)}")
    await client.close()
    await bus.close()
    assert dead_letter_from_proto(bus_pb2.DeadLetter.FromString(message.data or b"")) == letter
    assert letter.prompt_hash == blake2b(struct.pack("<3I", 7, 7, 7), digest_size=16).digest()


async def test_full_queue_refuses_and_says_when_to_come_back() -> None:
    bus = MemoryBus(max_queued=1)
    await bus.publish_request(_request(1), {})
    with pytest.raises(Overloaded) as caught:
        await bus.publish_request(_request(2), {})
    assert caught.value.retry_after_s


async def test_duplicate_publish_is_one_request(nats: LocalServer) -> None:
    bus = await connect_bus(nats.url, name="test")
    await bus.publish_request(_request(20), {})
    await bus.publish_request(_request(20), {})
    assert len(await _fetch(bus)) == 1
    await _drain(bus)
    await bus.close()


async def test_request_over_the_payload_limit_is_refused_with_the_numbers(
    nats: LocalServer,
) -> None:
    bus = await connect_bus(nats.url, name="test")
    with pytest.raises(PayloadTooLarge, match=r"\d+ bytes .* limit is \d+"):
        await bus.publish_request(_request(21, num_tokens=9_000_000), {})
    await bus.close()


async def test_missing_consumer_names_the_command_that_makes_it(nats: LocalServer) -> None:
    bus = await connect_bus(nats.url, name="test")
    with pytest.raises(ConfigError, match="millrace bus init --model other"):
        await bus.work_queue("other", Priority.NORMAL)
    await bus.close()


async def test_uninitialised_server_is_a_config_error(tmp_path: Path) -> None:
    with start_nats(tmp_path) as server, pytest.raises(ConfigError, match="millrace bus init"):
        await connect_bus(server.url, name="test")


async def test_init_is_safe_to_repeat(nats: LocalServer) -> None:
    await init_bus(nats.url, [MODEL])
    await init_bus(nats.url, [MODEL, "second"])


async def test_init_brings_what_an_older_release_made_up_to_date(tmp_path: Path) -> None:
    with start_nats(tmp_path) as server:
        await init_bus(server.url, [MODEL])
        client = await connect(server.url)
        jetstream = client.jetstream()
        bucket = (await jetstream.stream_info(f"KV_{OWNERS_BUCKET}")).config
        bucket.max_age = bucket.duplicate_window = 60
        await jetstream.update_stream(bucket)
        consumer = request_consumer_config(MODEL, Priority.NORMAL)
        await jetstream.add_consumer(REQUEST_STREAM, consumer.evolve(ack_wait=60))

        await init_bus(server.url, [MODEL])
        assert (await jetstream.stream_info(f"KV_{OWNERS_BUCKET}")).config.max_age == OWNER_TTL_S
        info = await jetstream.consumer_info(
            REQUEST_STREAM, request_consumer(MODEL, Priority.NORMAL)
        )
        assert info.config.ack_wait == ACK_WAIT_S
        await client.close()


async def test_silent_owner_counts_as_gone_after_its_time_to_live(nats: LocalServer) -> None:
    bus = await connect_bus(nats.url, name="test")
    await bus.claim_ownership(SchedulerOwner("mute", 1, "127.0.0.1:1", "mute-model"))
    owners = bus.owners()
    slug = model_slug("mute-model")
    seen: list[SchedulerOwner | None] = []
    async with asyncio.timeout(12):
        async for key, owner in owners:
            if key == slug:
                seen.append(owner)
            if seen and seen[-1] is None:
                break
    assert [owner is None for owner in seen] == [False, True]
    await owners.aclose()  # type: ignore[attr-defined]
    await bus.close()
