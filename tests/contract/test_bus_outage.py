"""What services see of a message bus that is away."""

from __future__ import annotations

from pathlib import Path

import pytest

from millrace.bus import nats
from millrace.bus.setup import init_bus
from millrace.core.errors import Unavailable
from millrace.core.membership import SchedulerOwner, WorkerLoad
from millrace.testing.servers import start_nats

OWNER = SchedulerOwner("s", 5, "a:1", "tiny")


async def test_every_call_says_that_the_bus_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats, "PUBLISH_TIMEOUT_S", 0.2)
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
        # The client keeps what needs no answer until it is connected again.
        await bus.publish_abort("r")
        await bus.publish_load(WorkerLoad("w", 0, 0, 0, 0))
        await bus.close()


async def test_release_of_an_entry_that_has_gone_is_no_error(tmp_path: Path) -> None:
    with start_nats(tmp_path) as server:
        await init_bus(server.url, ["tiny"])
        bus = await nats.connect_bus(server.url, name="test")
        await bus.release_ownership(OWNER)
        await bus.close()
