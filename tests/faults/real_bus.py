"""A real NATS server under the fault tests, and the check that its intake queue is empty."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from millrace.bus.nats import NatsBus, connect_bus
from millrace.bus.setup import init_bus
from millrace.bus.subjects import REQUEST_STREAM, request_consumer
from millrace.core.request import Priority
from millrace.testing.servers import LocalServer, start_nats
from tests.integration.gateway import MODEL

WAIT_S = 10.0


@dataclass
class RealBus:
    """The server, and one connection to it."""

    server: LocalServer
    bus: NatsBus

    async def check_empty(self) -> None:
        """No message is stored, none is held by anybody."""
        jetstream = (await self.bus._link.session()).jetstream
        async with asyncio.timeout(WAIT_S):
            while True:
                stored = (await jetstream.stream_info(REQUEST_STREAM)).state.messages
                held = 0
                for priority in Priority:
                    consumer = request_consumer(MODEL, priority)
                    info = await jetstream.consumer_info(REQUEST_STREAM, consumer)
                    held += info.num_ack_pending or 0
                if not stored and not held:
                    return
                await asyncio.sleep(0.05)


@asynccontextmanager
async def real_bus(folder: Path) -> AsyncIterator[RealBus]:
    """Started, initialised, connected."""
    with start_nats(folder) as server:
        await init_bus(server.url, [MODEL])
        bus = await connect_bus(server.url, name="test")
        try:
            yield RealBus(server, bus)
        finally:
            await bus.close()
