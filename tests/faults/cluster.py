"""Whole gateways and workers without a model in this process, around schedulers in their own."""

from __future__ import annotations

import asyncio
from pathlib import Path

from millrace.internal.v1 import scheduler_pb2, scheduler_pb2_grpc
from millrace.rpc.client import open_channel
from millrace.worker.announce import announce
from tests.faults.edge import Edge, TokenizerNode
from tests.faults.faulty_engine import FaultyEngine
from tests.faults.real_bus import RealBus
from tests.faults.service_process import ServiceProcess
from tests.integration.stack import WorkerNode, start_worker

WAIT_S = 15.0
HEARTBEAT_S = 2.0


class Cluster:
    """`check_all` is the leak check; `check_replies` the oracle of what its clients got."""

    def __init__(self, bus: RealBus, folder: Path) -> None:
        self._bus = bus
        self._tokenizer = TokenizerNode(folder)
        self._workers: list[WorkerNode] = []
        self._announcing: list[asyncio.Task[None]] = []
        self._edges: list[Edge] = []

    async def start(self) -> None:
        self._tokenizer_address = await self._tokenizer.start()

    async def scheduler(self) -> ServiceProcess:
        return await ServiceProcess.scheduler(self._bus.server.url)

    async def worker(self, worker_id: str, engine: FaultyEngine) -> WorkerNode:
        node = await start_worker(worker_id, engine)
        self._workers.append(node)
        beat = announce(self._bus.bus, node.registration, node.servicer.load, HEARTBEAT_S)
        self._announcing.append(asyncio.create_task(beat))
        return node

    async def edge(self) -> Edge:
        made = await Edge.start(self._bus.bus, self._tokenizer_address)
        self._edges.append(made)
        await made.until_ready(WAIT_S)
        return made

    async def check_all(self, scheduler: ServiceProcess) -> None:
        """Nothing is left in the active scheduler, in the workers, in the gateways."""
        channel = open_channel(scheduler.address)
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        async with asyncio.timeout(WAIT_S):
            while not _is_idle(await stub.GetStats(scheduler_pb2.GetStatsRequest())):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            while any(node.engine.num_taken_rows for node in self._workers):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await channel.close()
        for node in self._workers:
            assert not node.engine.defects
        for edge in self._edges:
            assert edge.num_in_flight == 0
        await self._bus.check_empty()

    async def stop(self) -> None:
        for edge in self._edges:
            await edge.stop()
        await self._tokenizer.stop()
        for beat in self._announcing:
            beat.cancel()
        await asyncio.gather(*self._announcing, return_exceptions=True)
        for node in self._workers:
            await node.stop()


def _is_idle(stats: scheduler_pb2.GetStatsResponse) -> bool:
    return (
        stats.status.num_workers > 0
        and not stats.status.num_running
        and not stats.status.num_waiting
        and not any(worker.num_used_blocks for worker in stats.workers)
    )
