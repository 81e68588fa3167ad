"""What services see of a message bus that is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from millrace.bus import nats, nats_link
from millrace.bus.setup import init_bus
from millrace.core.errors import Unavailable
from millrace.core.membership import SchedulerOwner, WorkerLoad, WorkerRegistration
from millrace.core.model import ModelInfo
from millrace.core.request import Priority, QueuedRequest
from millrace.core.sampling import SamplingSpec
from millrace.testing.servers import start_nats

OWNER = SchedulerOwner("s", 5, "a:1", "tiny")


async def test_every_call_says_that_the_bus_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_link, "GRACE_S", 0.1)
    with start_nats(tmp_path) as server:
        await init_bus(server.url, ["tiny"])
        bus = await nats.connect_bus(server.url, name="test")
        assert await bus.claim_ownership(OWNER) == 5
        server.kill()
        with pytest.raises(Unavailable):
            await bus.claim_ownership(OWNER)
        with pytest.raises(Unavailable):
            await bus.release_ownership(OWNER)
        with pytest.raises(Unavailable):
            await bus.unregister_worker("w")
        with pytest.raises(Unavailable):
            await bus.publish_abort("r")
        with pytest.raises(Unavailable):
            await bus.publish_load(WorkerLoad("w", 0, 0, 0, 0))
        with pytest.raises(Unavailable) as caught:
            await bus.publish_request(_request(), {})
        # Clients are told this: the address is for the log.
        assert "127.0.0.1" not in caught.value.message
        assert not bus.is_connected
        await bus.close()


async def test_release_of_an_entry_that_has_gone_is_no_error(tmp_path: Path) -> None:
    with start_nats(tmp_path) as server:
        await init_bus(server.url, ["tiny"])
        bus = await nats.connect_bus(server.url, name="test")
        await bus.release_ownership(OWNER)
        await bus.close()


async def test_bus_works_again_after_its_server_has_been_started_anew(tmp_path: Path) -> None:
    with start_nats(tmp_path) as server:
        await init_bus(server.url, ["tiny"])
        bus = await nats.connect_bus(server.url, name="test")
        await bus.claim_ownership(OWNER)
        await bus.register_worker(_registration("before"))
        workers = bus.workers()
        assert await anext(workers) == ("w", _registration("before"))
        queue = await bus.work_queue("tiny", Priority.NORMAL)
        server.kill()
        server.start()
        async with asyncio.timeout(20):
            assert await _until_it_answers(lambda: bus.claim_ownership(OWNER)) == 5
            await bus.register_worker(_registration("after"))
            assert await anext(workers) == ("w", _registration("after"))
            await bus.publish_request(_request(), {})
            (held,) = await queue.fetch(1, 5.0)
        assert held.request == _request()
        await held.acknowledge()
        await bus.close()


async def _until_it_answers(call: Callable[[], Awaitable[int | None]]) -> int | None:
    while True:
        try:
            return await call()
        except Unavailable:
            await asyncio.sleep(0.05)


def _registration(boot_id: str) -> WorkerRegistration:
    info = ModelInfo(name="tiny", revision="r", dtype="float32", max_model_len=64, vocab_size=9)
    return WorkerRegistration("w", boot_id, "a:1", info, 4, 16, 2)


def _request() -> QueuedRequest:
    return QueuedRequest(
        request_id="0" * 32,
        gateway_id="g",
        model="tiny",
        prompt_token_ids=[1],
        sampling=SamplingSpec(),
        stop_token_ids=(),
        max_tokens=1,
        num_choices=1,
        priority=Priority.NORMAL,
        deadline_unix_ms=0,
        arrival_unix_ns=0,
    )
