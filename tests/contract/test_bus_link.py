"""Fault F16: a NATS server that vanishes without a word, seen from the bus."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop
from nats import connect

from millrace.bus.base import Bus, WorkQueue
from millrace.bus.nats import NatsBus, connect_bus
from millrace.bus.setup import init_bus
from millrace.bus.subjects import REQUEST_STREAM
from millrace.core.errors import ConfigError, Unavailable
from millrace.core.membership import SchedulerOwner, WorkerRegistration
from millrace.core.model import ModelInfo, model_slug
from millrace.core.request import Priority, QueuedRequest
from millrace.core.sampling import SamplingSpec
from millrace.testing.fault_proxy import FaultMode, FaultProxy, fault_proxy
from millrace.testing.servers import LocalServer, free_port, start_nats

T = TypeVar("T")

MODEL = "tiny"
OWNER = SchedulerOwner("s", 5, "a:1", MODEL)
# What the fault table allows.
REBUILT_WITHIN_S = 15.0
# A publish that can no longer arrive: five seconds, and a second for the reason.
FAILS_WITHIN_S = 7.0
# Tokens, a byte each: more than the buffers on the way take in.
BIG = 8_000_000


def _request(number: int, num_tokens: int = 3) -> QueuedRequest:
    return QueuedRequest(
        request_id=f"{number:032x}",
        gateway_id="gw",
        model=MODEL,
        prompt_token_ids=[7] * num_tokens,
        sampling=SamplingSpec(),
        stop_token_ids=(),
        max_tokens=4,
        num_choices=1,
        priority=Priority.NORMAL,
        deadline_unix_ms=0,
        arrival_unix_ns=0,
    )


def _registration(boot_id: str) -> WorkerRegistration:
    info = ModelInfo(name=MODEL, revision="r", dtype="float32", max_model_len=64, vocab_size=9)
    return WorkerRegistration("w", boot_id, "a:1", info, 4, 16, 2)


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[LocalServer]:
    with start_nats(tmp_path) as server:
        # The fixture may be asked for inside a running event loop: its own loop needs a thread.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(lambda: asyncio.run(init_bus(server.url, [MODEL]))).result(10)
        yield server


@pytest.fixture
async def proxy(nats: LocalServer) -> AsyncIterator[FaultProxy]:
    async with fault_proxy(nats.port) as made:
        yield made


@pytest.fixture
async def direct(nats: LocalServer) -> AsyncIterator[NatsBus]:
    """The rest of the world, which reaches the server."""
    made = await connect_bus(nats.url, name="direct")
    yield made
    await made.close()


@dataclass
class Listener:
    """Everything that goes on by itself on one bus."""

    bus: Bus
    boot_ids: list[str] = field(default_factory=list)
    owner_epochs: list[int] = field(default_factory=list)
    aborts: set[str] = field(default_factory=set)
    fetched: list[str] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self) -> None:
        queue = await self.bus.work_queue(MODEL, Priority.NORMAL)
        jobs = (self._fetch(queue), self._watch_workers(), self._watch_owners(), self._hear())
        self._tasks = [asyncio.create_task(job) for job in jobs]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), outcomes

    async def _fetch(self, queue: WorkQueue) -> None:
        while True:
            try:
                for held in await queue.fetch(1, 4.0):
                    assert held.request is not None
                    await held.acknowledge()
                    self.fetched.append(held.request.request_id)
            except Unavailable:
                await asyncio.sleep(0.05)

    async def _watch_workers(self) -> None:
        async for _, registration in self.bus.workers():
            if registration is not None:
                self.boot_ids.append(registration.boot_id)

    async def _watch_owners(self) -> None:
        async for key, owner in self.bus.owners():
            if owner is not None and key == model_slug(MODEL):
                self.owner_epochs.append(owner.owner_epoch)

    async def _hear(self) -> None:
        async for request_id in self.bus.aborts():
            self.aborts.add(request_id)


@asynccontextmanager
async def _listening(proxy: FaultProxy) -> AsyncIterator[tuple[NatsBus, Listener]]:
    before = asyncio.all_tasks()
    bus = await connect_bus(f"nats://127.0.0.1:{proxy.port}", name="watched")
    listener = Listener(bus)
    await listener.start()
    try:
        yield bus, listener
    finally:
        await listener.stop()
        await bus.close()

    def left() -> list[asyncio.Task[Any]]:
        return [task for task in asyncio.all_tasks() - before if "fault_proxy" not in repr(task)]

    await _until(lambda: not left(), 1.0)


async def _until(condition: Callable[[], bool], timeout_s: float = REBUILT_WITHIN_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def _until_it_answers(call: Callable[[], Awaitable[T]]) -> T:
    async with asyncio.timeout(REBUILT_WITHIN_S):
        while True:
            try:
                return await call()
            except Unavailable:
                await asyncio.sleep(0.05)


async def _check_all_goes_on(direct: NatsBus, bus: NatsBus, listener: Listener, tag: int) -> None:
    """Publishing, fetching, both watches, aborts and ownership, through a bus that is whole."""
    await direct.register_worker(_registration(f"boot-{tag}"))
    epoch = await direct.claim_ownership(SchedulerOwner("s", tag, "a:1", MODEL))
    request_id = f"{tag:032x}"
    await _until_it_answers(lambda: bus.publish_request(_request(tag), {}))
    await _until(lambda: f"boot-{tag}" in listener.boot_ids)
    await _until(lambda: epoch in listener.owner_epochs)
    await _until(lambda: request_id in listener.fetched)

    async def told() -> None:
        async with asyncio.timeout(REBUILT_WITHIN_S):
            while request_id not in listener.aborts:
                await direct.publish_abort(request_id)
                await asyncio.sleep(0.02)

    await told()
    await bus.register_worker(_registration(f"own-{tag}"))
    await _until(lambda: f"own-{tag}" in listener.boot_ids)


@pytest.mark.slow
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("mode", [FaultMode.BLACK_HOLE, FaultMode.STALL])
def test_f16_bus_is_rebuilt_when_its_server_vanishes_without_a_word(
    nats: LocalServer, mode: FaultMode, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    """On the event loop of the services too: a transport that is gone raises other errors there."""

    async def scenario() -> None:
        direct = await connect_bus(nats.url, name="direct")
        async with fault_proxy(nats.port) as proxy:
            await _survive(proxy, direct, mode)
        await direct.close()

    run(scenario())


async def _survive(proxy: FaultProxy, direct: NatsBus, mode: FaultMode) -> None:
    async with _listening(proxy) as (bus, listener):
        await _check_all_goes_on(direct, bus, listener, 10)
        proxy.set_mode(mode)
        publishes = [
            asyncio.create_task(bus.publish_request(_request(number, num_tokens), {}))
            for number, num_tokens in ((1, 3), (2, BIG))
        ]
        begin_s = time.monotonic()
        done, pending = await asyncio.wait(publishes, timeout=FAILS_WITHIN_S)
        assert not pending, "a publish hangs"
        assert all(isinstance(task.exception(), Unavailable) for task in done)
        await _until(lambda: not bus.is_connected)
        proxy.set_mode(FaultMode.PASS)
        await _check_all_goes_on(direct, bus, listener, 20)
        assert time.monotonic() - begin_s < REBUILT_WITHIN_S
        assert listener.fetched.count(f"{20:032x}") == 1


@pytest.mark.slow
async def test_f16_only_the_old_connections_are_dead_and_idle(
    proxy: FaultProxy, direct: NatsBus
) -> None:
    """Nobody publishes: the watchdog alone must find it, within the time of the table."""
    async with _listening(proxy) as (bus, listener):
        await _check_all_goes_on(direct, bus, listener, 10)
        num_accepted = proxy.num_accepted
        begin_s = time.monotonic()
        assert proxy.vanish() == 1
        await _until(lambda: proxy.num_accepted > num_accepted and bus.is_connected)
        assert time.monotonic() - begin_s < REBUILT_WITHIN_S
        await _check_all_goes_on(direct, bus, listener, 20)


@pytest.mark.slow
async def test_f16_long_outage_fails_calls_at_once_and_heals_by_itself(
    proxy: FaultProxy, direct: NatsBus
) -> None:
    async with _listening(proxy) as (bus, listener):
        proxy.set_mode(FaultMode.BLACK_HOLE)
        await _until(lambda: not bus.is_connected)
        for _ in range(4):
            begin_s = time.monotonic()
            with pytest.raises(Unavailable) as caught:
                await bus.publish_request(_request(1), {})
            assert time.monotonic() - begin_s < 2.0
            assert caught.value.retry_after_s
        proxy.set_mode(FaultMode.PASS)
        await _check_all_goes_on(direct, bus, listener, 20)


async def test_connection_that_is_reset_is_made_anew(proxy: FaultProxy, direct: NatsBus) -> None:
    async with _listening(proxy) as (bus, listener):
        for tag in (10, 20, 30):
            num_accepted = proxy.num_accepted
            proxy.reset()
            await _until(lambda: proxy.num_accepted > num_accepted)  # noqa: B023
            await _check_all_goes_on(direct, bus, listener, tag)


async def test_answers_cut_off_in_the_middle_do_no_harm(proxy: FaultProxy, direct: NatsBus) -> None:
    async with _listening(proxy) as (bus, listener):
        await _check_all_goes_on(direct, bus, listener, 10)
        proxy.set_mode(FaultMode.TRUNCATE, truncate_after=10)
        with pytest.raises(Unavailable):
            await bus.publish_request(_request(1), {})
        proxy.set_mode(FaultMode.PASS)
        await _check_all_goes_on(direct, bus, listener, 20)


async def test_held_request_is_settled_over_the_next_connection(
    nats: LocalServer, proxy: FaultProxy
) -> None:
    bus = await connect_bus(f"nats://127.0.0.1:{proxy.port}", name="watched")
    await bus.publish_request(_request(1), {})
    queue = await bus.work_queue(MODEL, Priority.NORMAL)
    (held,) = await queue.fetch(1, 5.0)
    proxy.reset()
    await _until(lambda: proxy.num_accepted == 2)
    await _until_it_answers(held.in_progress)
    await held.acknowledge()
    client = await connect(nats.url)
    info = await client.jetstream().stream_info(REQUEST_STREAM)
    assert info.state.messages == 0
    await client.close()
    await bus.close()


async def test_close_of_a_bus_whose_server_has_vanished_waits_for_nobody_and_frees_its_socket(
    proxy: FaultProxy,
) -> None:
    bus = await connect_bus(f"nats://127.0.0.1:{proxy.port}", name="watched")
    client: Any = bus._link._client
    transport = client._transport._io_writer.transport
    proxy.set_mode(FaultMode.STALL)
    publish = asyncio.create_task(bus.publish_request(_request(2, BIG), {}))
    await _until(lambda: transport.get_write_buffer_size() > 0)
    async with asyncio.timeout(1.0):
        await bus.close()
        with pytest.raises(Unavailable):
            await publish
    assert transport.get_extra_info("socket").fileno() == -1


async def test_server_that_never_answers_is_a_config_error_in_time() -> None:
    begin_s = time.monotonic()
    with pytest.raises(ConfigError, match="no NATS server answers at nats://127.0.0.1:"):
        await connect_bus(f"nats://127.0.0.1:{free_port()}", name="test", timeout_s=0.5)
    assert time.monotonic() - begin_s < 10.0
