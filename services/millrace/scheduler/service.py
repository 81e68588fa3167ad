"""Every part of the scheduler service, put together."""

from __future__ import annotations

import asyncio
import uuid

from millrace.bus.base import Bus
from millrace.rpc.advertised import advertised_address
from millrace.rpc.server import RpcServer
from millrace.telemetry.metrics import SchedulerMetrics

from .config import SchedulerConfig
from .dead_letters import DeadLetters
from .frames import FrameSender
from .gateway_links import GatewayLinks
from .intake import Intake
from .intake_figures import IntakeFigures
from .ledger import Ledger
from .loop import StepLoop
from .ownership import Ownership
from .policy import SchedulerPolicy
from .request_spans import StepSpans
from .scheduler import Scheduler
from .servicer import SchedulerServicer
from .status import StatusBoard
from .watchdog import WatchLimits
from .workers import Workers

STOP_GRACE_S = 1.0


class SchedulerService:
    """`start`, then `run` until it raises or is cancelled, then `stop`.

    `scheduler`, `ledger` and `links` hold all its state.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        bus: Bus,
        metrics: SchedulerMetrics,
        watch_limits: WatchLimits | None = None,
    ) -> None:
        self._config = config
        self._watch_limits = watch_limits
        self._bus = bus
        self._scheduler_id = config.scheduler_id or f"scheduler-{uuid.uuid4().hex[:8]}"
        self.scheduler = Scheduler(_policy(config))
        self.ledger = Ledger()
        self.links = GatewayLinks()
        self._frames = FrameSender(self.ledger, self.links)
        self._dead_letters = DeadLetters(bus, metrics)
        self._loop = StepLoop(
            self.scheduler,
            self.ledger,
            self._frames,
            StepSpans(config.step_span_every),
            self._dead_letters,
            metrics,
        )
        self._intake = Intake(
            bus,
            self.scheduler,
            self.ledger,
            self.links,
            self._frames,
            self._dead_letters,
            max_held=2 * config.max_num_waiting,
            gateway_grace_s=config.gateway_grace_s,
            on_work=self._loop.dispatch,
            metrics=metrics,
        )
        self._board = StatusBoard(
            config.model,
            self._frames,
            self.scheduler,
            self._loop,
            self.ledger,
            self.links,
            metrics,
        )
        self._figures = IntakeFigures(bus, config.model, metrics)
        self._server = RpcServer("scheduler", config.host, config.port)
        self._ownership: Ownership | None = None
        servicer = SchedulerServicer(
            self.links, self._intake, self._board.now, self.scheduler.stats
        )
        servicer.add_to(self._server)

    async def start(self) -> str:
        """Binds; returns `host:port`. Raises `ConfigError` where the port is taken."""
        address = await self._server.start()
        self._ownership = Ownership(
            self._bus,
            self._scheduler_id,
            await advertised_address(
                self._config.advertise_address, address, self._config.nats_url
            ),
            self._config.model,
        )
        return address

    async def run(self) -> None:
        """Waits for the model, then schedules until cancelled.

        Raises, in exception groups, `Unavailable` where another scheduler has taken over and
        `ConfigError` where the queue's consumers are missing.
        """
        assert self._ownership is not None, "start comes first"
        self._frames.owner_epoch = await self._ownership.claim()
        workers = Workers(
            self._bus,
            self._loop,
            self._config.model,
            self._frames.owner_epoch,
            self._scheduler_id,
            self._watch_limits,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._ownership.keep())
            group.create_task(workers.run())
            group.create_task(self._intake.run(self._config.model))
            group.create_task(self._board.run())
            group.create_task(self._figures.run())

    async def stop(self) -> None:
        """Hands over at once: the model, the gateways' streams and every held message."""
        await self._server.set_serving(False)
        if self._ownership is not None:
            await self._ownership.release()
        self.links.close()
        await self._intake.give_back_all()
        await self._dead_letters.close()
        await self._server.stop(STOP_GRACE_S)


def _policy(config: SchedulerConfig) -> SchedulerPolicy:
    return SchedulerPolicy(
        max_num_batched_tokens=config.max_num_batched_tokens,
        target_itl_ms=config.target_itl_ms,
        lease_steps=config.lease_steps,
        max_num_waiting=config.max_num_waiting,
        max_waiting_tokens=config.max_waiting_tokens,
        canary_every_s=config.canary_every_s,
    )
