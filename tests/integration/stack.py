"""A scheduler service, workers without a model, and scripted gateways, over loopback gRPC."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from millrace.bus.base import Bus
from millrace.bus.memory import MemoryBus
from millrace.core.membership import WorkerRegistration
from millrace.core.step import StepPlan, StepResult
from millrace.internal.v1 import scheduler_pb2, scheduler_pb2_grpc, worker_pb2_grpc
from millrace.rpc.client import open_channel
from millrace.rpc.server import RpcServer
from millrace.scheduler.config import SchedulerConfig
from millrace.scheduler.service import SchedulerService
from millrace.scheduler.watchdog import WatchLimits
from millrace.telemetry.metrics import SchedulerMetrics, WorkerMetrics, create_registry
from millrace.testing.model_worker import ModelWorker
from millrace.worker.engine_loop import EngineLoop
from millrace.worker.servicer import WorkerServicer
from tests.integration.gateway import MODEL, ScriptedGateway

WAIT_S = 10.0


class PacedEngine(ModelWorker):
    """A model worker in real time that a test can stop between steps, or have fail."""

    def __init__(self, **settings: int) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self.gate = threading.Event()
        self.gate.set()
        self.num_failing_steps = 0
        self.num_resets = 0
        self.defects: list[AssertionError] = []

    def execute(self, plan: StepPlan) -> StepResult:
        assert self.gate.wait(WAIT_S), "the test forgot to open the gate"
        try:
            return self._timed(super().execute(plan))
        except AssertionError as defect:
            # The scheduler would try again, and nobody would know.
            self.defects.append(defect)
            raise

    def run_lease_step(self) -> StepResult | None:
        if not self.gate.is_set():
            return None
        result = super().run_lease_step()
        return self._timed(result) if result is not None else None

    def reset(self) -> None:
        self.num_resets = getattr(self, "num_resets", 0) + 1
        super().reset()

    def _prefill(self, plan: StepPlan, result: StepResult) -> None:
        if self.num_failing_steps:
            self.num_failing_steps -= 1
            raise MemoryError("no room for the step")
        super()._prefill(plan, result)

    def _timed(self, result: StepResult) -> StepResult:
        result.started_unix_ns = time.time_ns()
        result.step_ns = 1_000
        return result


@dataclass
class WorkerNode:
    """A worker service without its process."""

    registration: WorkerRegistration
    engine: PacedEngine
    loop: EngineLoop
    server: RpcServer
    servicer: WorkerServicer

    async def break_off(self) -> None:
        """Ends the server at once, as a crash would, from the scheduler's point of view."""
        await self.server.stop(0)

    async def stop(self) -> None:
        self.engine.gate.set()
        await self.server.stop(0)
        await asyncio.to_thread(self.loop.stop)


async def start_worker(worker_id: str, engine: PacedEngine) -> WorkerNode:
    """Serves an engine on a free port; nobody is told of it yet."""
    loop = EngineLoop(engine)
    loop.start()
    registration = WorkerRegistration(
        worker_id=worker_id,
        boot_id=uuid.uuid4().hex,
        advertise_address="",
        model=engine.info,
        num_blocks=engine.num_blocks,
        block_size=engine.block_size,
        max_num_seqs=engine.max_num_seqs,
    )
    servicer = WorkerServicer(registration, loop, WorkerMetrics(create_registry("worker")))
    server = RpcServer("worker", "127.0.0.1", 0)
    server.add(
        worker_pb2_grpc.add_WorkerServiceServicer_to_server,
        servicer,
        "millrace.internal.v1.WorkerService",
    )
    servicer.advertise(await server.start())
    return WorkerNode(servicer.registration, engine, loop, server, servicer)


class Stack:
    """One scheduler, its workers and gateways; `check_empty` says that nothing is left of them."""

    def __init__(
        self, bus: Bus, config: SchedulerConfig, watch_limits: WatchLimits | None = None
    ) -> None:
        self.bus = bus
        self.registry = create_registry("scheduler")
        self.service = SchedulerService(
            config, bus, SchedulerMetrics(self.registry, MODEL), watch_limits
        )
        self.workers: dict[str, WorkerNode] = {}
        self.gateways: list[ScriptedGateway] = []

    async def start(self) -> None:
        self.address = await self.service.start()
        self._running = asyncio.create_task(self.service.run())
        self._channel = open_channel(self.address)

    async def add_worker(self, worker_id: str = "w", **settings: int) -> WorkerNode:
        return await self.add_engine(worker_id, PacedEngine(**settings))

    async def add_engine(self, worker_id: str, engine: PacedEngine) -> WorkerNode:
        node = await start_worker(worker_id, engine)
        self.workers[worker_id] = node
        await self.bus.register_worker(node.registration)
        await self.until(lambda: worker_id in self.worker_ids())
        return node

    async def gateway(self, gateway_id: str = "gateway") -> ScriptedGateway:
        gateway = ScriptedGateway(self.address, gateway_id)
        await gateway.attach()
        self.gateways.append(gateway)
        return gateway

    def worker_ids(self) -> set[str]:
        return {worker.worker_id for worker in self.service.scheduler.stats().workers}

    async def stats(self) -> scheduler_pb2.GetStatsResponse:
        stub = scheduler_pb2_grpc.SchedulerServiceStub(self._channel)
        response: scheduler_pb2.GetStatsResponse = await stub.GetStats(
            scheduler_pb2.GetStatsRequest()
        )
        return response

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for the service's own state; fails with the service where that has failed."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                if self._running.done():
                    self._running.result()
                await asyncio.sleep(0.005)

    async def check_empty(self) -> None:
        """No request, no message, no block in use."""
        await self.until(lambda: not len(self.service.ledger))
        await self.until(lambda: self.service.scheduler.stats().num_requests == 0)
        await self.until(
            lambda: all(
                worker.num_used_blocks == 0 for worker in self.service.scheduler.stats().workers
            )
        )
        stats = await self.stats()
        assert stats.status.num_running == stats.status.num_waiting == 0
        assert [worker.num_used_blocks for worker in stats.workers] == [0] * len(stats.workers)
        for worker_id in self.worker_ids() & self.workers.keys():
            engine = self.workers[worker_id].engine
            await self.until(lambda engine=engine: engine.num_taken_rows == 0)  # type: ignore[misc]
            assert not engine.defects
        if isinstance(self.bus, MemoryBus):
            queues = self.bus._queues.values()
            await self.until(lambda: sum(queue.num_messages for queue in queues) == 0)

    async def stop_workers(self) -> None:
        for worker_id in list(self.workers):
            await self.bus.unregister_worker(worker_id)
            await self.workers.pop(worker_id).stop()
        await self.until(lambda: not self.worker_ids())

    async def stop(self) -> None:
        for gateway in self.gateways:
            await gateway.detach()
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        await self.service.stop()
        await self.stop_workers()
        await self._channel.close()
