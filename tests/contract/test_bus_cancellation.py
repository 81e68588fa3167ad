"""A caller that is cancelled hears of it, whatever the server answers at that moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

from millrace.bus.nats import connect_bus
from millrace.bus.setup import init_bus
from millrace.testing.servers import start_nats
from tests.integration.gateway import MODEL, queued_request

MOST_TURNS = 40


async def test_publish_that_is_cancelled_as_its_answer_comes_is_cancelled(tmp_path: Path) -> None:
    with start_nats(tmp_path) as server:
        await init_bus(server.url, [MODEL])
        bus = await connect_bus(server.url, name="test")
        num_cancelled = 0
        for number in range(20 * MOST_TURNS):
            publishing = asyncio.create_task(bus.publish_request(queued_request(number), {}))
            for _ in range(number % MOST_TURNS):
                await asyncio.sleep(0.0)
            if publishing.cancel():
                num_cancelled += 1
                await asyncio.wait([publishing])
                assert publishing.cancelled()
        assert num_cancelled > MOST_TURNS
        await bus.close()
