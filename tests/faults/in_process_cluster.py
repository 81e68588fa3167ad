"""Two schedulers, two workers and a gateway in one process; each can fail and come back."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path

from millrace.core.errors import MillraceError, Unavailable
from millrace.core.step import StepPlan, StepResult
from millrace.scheduler.config import SchedulerConfig
from millrace.scheduler.service import SchedulerService
from millrace.scheduler.watchdog import WatchLimits
from millrace.telemetry.metrics import SchedulerMetrics, create_registry
from tests.faults.edge import Edge, TokenizerNode
from tests.faults.faulty_engine import FaultyEngine
from tests.faults.flaky_bus import FlakyBus
from tests.integration.stack import PacedEngine, WorkerNode, start_worker

WAIT_S = 20.0
WORKER_IDS = ("a", "b")
NUM_SCHEDULERS = 2
SUPERVISE_EVERY_S = 0.05


class FailingEngine(FaultyEngine):
    """Fails as many steps as it is told."""

    num_broken_steps = 0

    def _prefill(self, plan: StepPlan, result: StepResult) -> None:
        if self.num_broken_steps and self._rows:
            self.num_broken_steps -= 1
            raise RuntimeError("a step that fails")
        super()._prefill(plan, result)


class SchedulerNode:
    """A scheduler service without its process."""

    def __init__(self, config: SchedulerConfig, bus: FlakyBus, limits: WatchLimits) -> None:
        self.registry = create_registry("scheduler")
        metrics = SchedulerMetrics(self.registry, config.model)
        self.service = SchedulerService(config, bus, metrics, limits)

    async def start(self) -> None:
        await self.service.start()
        self.running = asyncio.create_task(self.service.run())

    @property
    def owner_epoch(self) -> int:
        """0 for a standby."""
        return self.service._frames.owner_epoch

    async def kill(self) -> None:
        """Without a word to anybody: nothing is released, nothing given back."""
        await self._cancel()
        self.service.links.close()
        await self.service._server.stop(0)

    async def stop(self) -> None:
        await self._cancel()
        await self.service.stop()

    async def _cancel(self) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)


class InProcessCluster:
    """`start`, then whatever the test does, then `heal`, `check_all` and `stop`."""

    def __init__(self, config: SchedulerConfig, limits: WatchLimits, step_s: float) -> None:
        self.bus = FlakyBus()
        self.workers: dict[str, WorkerNode] = {}
        self.defects: list[BaseException] = []
        self._config = config
        self._limits = limits
        self._step_s = step_s
        self._schedulers: list[SchedulerNode] = []
        self._stopped_engines: list[PacedEngine] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._tasks.append(asyncio.create_task(self.bus.run()))
        for _ in range(NUM_SCHEDULERS):
            await self._start_scheduler()
        self._tasks.append(asyncio.create_task(self._supervise()))
        for worker_id in WORKER_IDS:
            await self.start_worker(worker_id)
        with tempfile.TemporaryDirectory() as folder:
            self._tokenizer = TokenizerNode(Path(folder))
        self.edge = await Edge.start(self.bus, await self._tokenizer.start())
        await self.edge.until_ready()

    async def stop(self) -> None:
        await self.edge.stop()
        await self._tokenizer.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.bus.is_out = False
        for scheduler in self._schedulers:
            await scheduler.stop()
        for worker_id in list(self.workers):
            await self.kill_worker(worker_id)

    @property
    def active(self) -> SchedulerNode | None:
        """The scheduler that owns the model."""
        owners = [s for s in self._schedulers if s.owner_epoch and not s.running.done()]
        return max(owners, key=lambda scheduler: scheduler.owner_epoch, default=None)

    def engine(self, worker_id: str) -> FailingEngine | None:
        """None while that worker is down."""
        node = self.workers.get(worker_id)
        return node.engine if node and isinstance(node.engine, FailingEngine) else None

    async def start_worker(self, worker_id: str) -> None:
        """A new start; nothing happens where it runs."""
        if worker_id not in self.workers:
            node = await start_worker(worker_id, FailingEngine(step_s=self._step_s))
            self.workers[worker_id] = node
            await self.bus.register_worker(node.registration)

    async def kill_worker(self, worker_id: str) -> None:
        """Its registration stays, as that of a process that was killed."""
        if (node := self.workers.pop(worker_id, None)) is not None:
            self._stopped_engines.append(node.engine)
            await node.stop()

    async def end_worker(self, worker_id: str) -> None:
        """In an orderly way."""
        if (node := self.workers.get(worker_id)) is not None:
            node.servicer.end()
            await self.bus.unregister_worker(worker_id)
            await self.kill_worker(worker_id)

    async def kill_scheduler(self) -> None:
        """The active one; a new standby comes up."""
        if (victim := self.active) is not None:
            self._schedulers.remove(victim)
            await victim.kill()
            await self._start_scheduler()

    async def cut_attach(self) -> None:
        """The stream between gateway and scheduler breaks."""
        for side in self.edge.gateway._router._sides.values():
            if side.link._stream is not None:
                await side.link._stream.close()

    async def heal(self) -> None:
        """Everything is up again and reachable."""
        self.bus.is_out = False
        for node in self.workers.values():
            node.engine.gate.set()
        for worker_id in WORKER_IDS:
            await self.start_worker(worker_id)
        await self.edge.until(self._is_whole, WAIT_S)

    async def check_all(self) -> None:
        """No request, row, block or message is left, and nobody has broken the protocol."""
        assert not self.defects, self.defects
        await self.edge.until(lambda: not self.edge.num_in_flight, WAIT_S)
        await self.edge.until(self._is_empty, WAIT_S)
        for engine in (*self._stopped_engines, *(node.engine for node in self.workers.values())):
            assert not engine.defects
        for queue in self.bus._queues.values():
            assert queue.num_messages == 0
        assert not self.bus.held
        assert not self.bus.dead_letters

    def _is_whole(self) -> bool:
        active = self.active
        if active is None:
            return False
        present = {worker.worker_id for worker in active.service.scheduler.stats().workers}
        return present == set(WORKER_IDS)

    def _is_empty(self) -> bool:
        active = self.active
        if active is None or len(active.service.ledger) or self.bus.held:
            return False
        stats = active.service.scheduler.stats()
        mirrors = active.service.scheduler._workers.values()
        return (
            not stats.num_requests
            and all(not m.rows and len(m._free_rows) == m.max_num_seqs for m in mirrors)
            and all(m.blocks.num_available == m.blocks.num_blocks for m in mirrors)
            and all(node.engine.num_taken_rows == 0 for node in self.workers.values())
            and all(queue.num_messages == 0 for queue in self.bus._queues.values())
        )

    async def _start_scheduler(self) -> None:
        node = SchedulerNode(self._config, self.bus, self._limits)
        await node.start()
        self._schedulers.append(node)

    async def _supervise(self) -> None:
        """Starts a scheduler anew that has ended by itself, as whoever runs the service does."""
        while True:
            await asyncio.sleep(SUPERVISE_EVERY_S)
            for node in [node for node in self._schedulers if node.running.done()]:
                self._schedulers.remove(node)
                self._note_end(node)
                with contextlib.suppress(MillraceError):
                    await node.stop()
                await self._start_scheduler()

    def _note_end(self, node: SchedulerNode) -> None:
        error = node.running.exception()
        if not isinstance(error, BaseExceptionGroup):
            self.defects.append(error or RuntimeError("a scheduler ended without a reason"))
        elif rest := error.split(Unavailable)[1]:
            self.defects.append(rest)
