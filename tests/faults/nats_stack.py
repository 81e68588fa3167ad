"""The fault stack behind one gateway and over real NATS, with workers that announce themselves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import nats
from nats.js import JetStreamContext

from millrace.bus.nats import connect_bus
from millrace.bus.setup import init_bus
from millrace.bus.subjects import REQUEST_STREAM, request_consumer
from millrace.core.request import Priority
from millrace.core.step import StepResult
from millrace.scheduler.config import SchedulerConfig
from millrace.telemetry import names
from millrace.testing.servers import start_nats
from millrace.worker.announce import announce
from tests.faults.edge import Edge
from tests.faults.fault_stack import FaultStack
from tests.faults.faulty_engine import FaultyEngine
from tests.integration.gateway import MODEL, WAIT_S

HEARTBEAT_S = 2.0


class SteadyEngine(FaultyEngine):
    """Takes its time for leased steps too, as a model does."""

    def run_lease_step(self) -> StepResult | None:
        if self.live_rows:
            time.sleep(self.step_s)
        return super().run_lease_step()


class NatsStack:
    """`stack` behind `edge`. Made by `open`."""

    def __init__(self, stack: FaultStack, edge: Edge, jetstream: JetStreamContext) -> None:
        self.stack = stack
        self.edge = edge
        self._jetstream = jetstream

    @classmethod
    @asynccontextmanager
    async def open(
        cls, folder: Path, config: SchedulerConfig, num_workers: int, step_s: float
    ) -> AsyncIterator[NatsStack]:
        """With everything that it needs; all of it ends with the context."""
        async with AsyncExitStack() as closing:
            server = closing.enter_context(start_nats(folder))
            await init_bus(server.url, [MODEL])
            watcher = await nats.connect(server.url)
            closing.push_async_callback(watcher.close)
            bus = await connect_bus(server.url, name="test")
            closing.push_async_callback(bus.close)
            stack = FaultStack(bus, config)
            await stack.start()
            closing.push_async_callback(stack.stop)
            for number in range(num_workers):
                node = await stack.add_engine(f"w{number}", SteadyEngine(step_s=step_s))
                beat = announce(bus, node.registration, node.servicer.load, HEARTBEAT_S)
                closing.push_async_callback(_cancelled, asyncio.create_task(beat))
            yield cls(stack, await stack.edge(), watcher.jetstream())

    async def check_all(self) -> None:
        """Nothing of any request is left, neither in the services nor on the bus."""
        await self.stack.check_all()
        in_flight = self.edge.registry.get_sample_value(
            names.METRIC_REQUESTS_IN_FLIGHT, {"model_name": MODEL}
        )
        assert in_flight == 0
        async with asyncio.timeout(WAIT_S):
            while await self._left_on_the_bus():  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def _left_on_the_bus(self) -> dict[str, int]:
        """Messages of the stream, and those delivered and not settled; zeros left out."""
        stream = (await self._jetstream.stream_info(REQUEST_STREAM)).state
        counts = {"messages": stream.messages}
        for priority in Priority:
            name = request_consumer(MODEL, priority)
            consumer = await self._jetstream.consumer_info(REQUEST_STREAM, name)
            counts[f"{name} ack pending"] = consumer.num_ack_pending or 0
            counts[f"{name} pending"] = consumer.num_pending or 0
        return {name: count for name, count in counts.items() if count}


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
