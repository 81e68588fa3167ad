"""What gateways are told of this scheduler, and what its metrics show, once a second."""

from __future__ import annotations

import asyncio

from millrace.core.membership import SchedulerStatus
from millrace.core.model import ModelInfo
from millrace.telemetry.metrics import SchedulerMetrics

from .frames import FrameSender
from .gateway_links import GatewayLinks
from .ledger import Ledger
from .loop import StepLoop
from .scheduler import Scheduler

STATUS_EVERY_S = 1.0


class StatusBoard:
    """Reads the scheduler's numbers; never writes them."""

    def __init__(
        self,
        model: str,
        frames: FrameSender,
        scheduler: Scheduler,
        loop: StepLoop,
        ledger: Ledger,
        links: GatewayLinks,
        metrics: SchedulerMetrics,
    ) -> None:
        self._model = ModelInfo(name=model, revision="", dtype="", max_model_len=0, vocab_size=0)
        self._frames = frames
        self._scheduler = scheduler
        self._loop = loop
        self._ledger = ledger
        self._links = links
        self._metrics = metrics

    def now(self) -> SchedulerStatus:
        """The status; without a worker, what the last one served."""
        models = self._loop.models
        if models:
            self._model = models[0]
        stats = self._scheduler.stats()
        return SchedulerStatus(
            model=self._model,
            num_workers=stats.num_workers,
            num_waiting=stats.num_waiting,
            num_running=stats.num_running,
            num_blocks=stats.num_blocks,
            num_free_blocks=stats.num_free_blocks,
            owner_epoch=self._frames.owner_epoch,
        )

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            status = self.now()
            self._links.broadcast(status)
            self._metrics.num_workers.set(status.num_workers)
            self._metrics.num_requests_waiting.set(status.num_waiting)
            self._metrics.num_requests_running.set(status.num_running)
            self._metrics.nats_ack_pending.set(len(self._ledger))
            workers = self._scheduler.stats().workers
            used = {w.worker_id: w.num_used_blocks / w.num_blocks for w in workers if w.num_blocks}
            self._metrics.kv_cache_usage.set_all(used)
            await asyncio.sleep(STATUS_EVERY_S)
