"""The integration stack with worker processes that can be killed and stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.bus.base import Bus
from millrace.core.membership import WorkerRegistration
from millrace.scheduler.config import SchedulerConfig
from millrace.scheduler.watchdog import WatchLimits
from tests.faults.edge import Edge, TokenizerNode
from tests.faults.faulty_engine import FaultyEngine
from tests.faults.oracle import check_stream
from tests.integration.gateway import MODEL
from tests.integration.stack import Stack

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 20.0


@dataclass
class WorkerProcess:
    """A worker that is a process."""

    registration: WorkerRegistration
    process: Process

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def end(self) -> None:
        """Kills it, stopped or not, and waits."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


class FaultStack(Stack):
    """`check_all` is the oracle and the leak check of every fault test."""

    def __init__(
        self, bus: Bus, config: SchedulerConfig, watch_limits: WatchLimits | None = None
    ) -> None:
        super().__init__(bus, config, watch_limits)
        self.processes: dict[str, WorkerProcess] = {}
        self.edges: list[Edge] = []
        self._tokenizer: TokenizerNode | None = None
        self._tokenizer_address = ""

    async def add_process(self, worker_id: str, **settings: float | Path) -> WorkerProcess:
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.faults.worker_process", worker_id, *arguments),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
            stdout=PIPE,
        )
        assert process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            address, boot_id = (await process.stdout.readline()).decode().split()
        model = FaultyEngine()
        registration = WorkerRegistration(
            worker_id=worker_id,
            boot_id=boot_id,
            advertise_address=address,
            model=model.info,
            num_blocks=model.num_blocks,
            block_size=model.block_size,
            max_num_seqs=model.max_num_seqs,
        )
        made = self.processes[worker_id] = WorkerProcess(registration, process)
        await self.bus.register_worker(registration)
        await self.until(lambda: worker_id in self.worker_ids())
        return made

    async def tokenizer(self) -> str:
        """The address of the one tokenizer that all gateways share."""
        if self._tokenizer is None:
            with tempfile.TemporaryDirectory() as folder:
                self._tokenizer = TokenizerNode(Path(folder))
            self._tokenizer_address = await self._tokenizer.start()
        return self._tokenizer_address

    async def edge(self, **settings: Any) -> Edge:
        """A whole gateway."""
        made = await Edge.start(self.bus, await self.tokenizer(), **settings)
        self.edges.append(made)
        await made.until_ready()
        return made

    def members(self, worker_id: str) -> list[str]:
        """Request ids in a worker's rows; none where it is gone."""
        if worker_id not in self.worker_ids():
            return []
        return self.service.scheduler.members(worker_id)

    def aborted(self, reason: str) -> float:
        """Requests that the scheduler counted as aborted for a reason."""
        name = "millrace_request_aborted_total"
        labels = {"model_name": MODEL, "reason": reason}
        return self.registry.get_sample_value(name, labels) or 0.0

    async def check_all(self) -> None:
        """One terminal event each, no gap, nothing double, nothing leaked."""
        for gateway in self.gateways:
            check_stream(gateway)
        await self.check_empty()
        for edge in self.edges:
            await edge.until(lambda edge=edge: edge.num_in_flight == 0)  # type: ignore[misc]
        workers = self.service.scheduler._workers
        await self.until(lambda: not any(each.canaries.held for each in workers.values()))
        for worker in workers.values():
            assert not worker.rows and not worker.to_release
            assert worker.blocks.num_available == worker.blocks.num_blocks
            assert len(worker._free_rows) == worker.max_num_seqs
        assert not self.service.scheduler._waiting

    async def stop(self) -> None:
        for edge in self.edges:
            await edge.stop()
        if self._tokenizer is not None:
            await self._tokenizer.stop()
        for worker_id, worker in self.processes.items():
            await self.bus.unregister_worker(worker_id)
            await worker.end()
        await super().stop()
