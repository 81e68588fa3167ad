"""Wires the scheduler service."""

from __future__ import annotations

import asyncio
import contextlib
import uuid

import uvloop

from millrace.bus.nats import connect_bus
from millrace.config.loader import load_config
from millrace.internal.v1 import scheduler_pb2_grpc
from millrace.rpc.server import RpcServer
from millrace.rpc.signals import run_until_signalled
from millrace.telemetry.metrics import SchedulerMetrics, create_registry, start_metrics_server
from millrace.telemetry.setup import configure_logging, start_telemetry

from .config import SchedulerConfig
from .frames import FrameSender
from .gateway_links import GatewayLinks
from .intake import Intake
from .ledger import Ledger
from .loop import StepLoop
from .ownership import Ownership
from .policy import SchedulerPolicy
from .request_spans import StepSpans
from .scheduler import Scheduler
from .servicer import SchedulerServicer
from .status import StatusBoard
from .workers import Workers

SERVICE_NAME = "millrace.internal.v1.SchedulerService"


def main() -> None:
    """Runs until SIGTERM or SIGINT."""
    config = load_config(SchedulerConfig, "scheduler")
    configure_logging("scheduler")
    uvloop.run(serve(config))


async def serve(config: SchedulerConfig) -> None:
    """Binds, claims the model, schedules until told to end or until another scheduler owns it."""
    telemetry = start_telemetry("scheduler")
    registry = create_registry("scheduler")
    metrics = SchedulerMetrics(registry)
    scheduler_id = config.scheduler_id or f"scheduler-{uuid.uuid4().hex[:8]}"
    bus = await connect_bus(config.nats_url, name="scheduler")
    policy = SchedulerPolicy(
        max_num_batched_tokens=config.max_num_batched_tokens,
        target_itl_ms=config.target_itl_ms,
        lease_steps=config.lease_steps,
        max_num_waiting=config.max_num_waiting,
        max_waiting_tokens=config.max_waiting_tokens,
    )
    scheduler, ledger, links = Scheduler(policy), Ledger(), GatewayLinks()
    frames = FrameSender(ledger, links)
    loop = StepLoop(scheduler, ledger, frames, StepSpans(config.step_span_every), metrics)
    intake = Intake(
        bus,
        scheduler,
        ledger,
        links,
        frames,
        max_held=2 * config.max_num_waiting,
        gateway_grace_s=config.gateway_grace_s,
        on_work=loop.dispatch,
    )
    board = StatusBoard(config.model, frames, scheduler, loop, ledger, links, metrics)
    server = RpcServer("scheduler", config.host, config.port)
    servicer = SchedulerServicer(links, intake, board.now, scheduler.stats)
    server.add(scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server, servicer, SERVICE_NAME)
    address = await server.start()
    if config.metrics_port:
        await start_metrics_server(registry, config.host, config.metrics_port)
    ownership = Ownership(bus, scheduler_id, config.advertise_address or address, config.model)
    signalled = asyncio.create_task(run_until_signalled())
    print(f"ready scheduler {address}", flush=True)

    async def own() -> None:
        frames.owner_epoch = await ownership.claim()
        workers = Workers(bus, loop, config.model, frames.owner_epoch, scheduler_id)
        async with asyncio.TaskGroup() as group:
            group.create_task(ownership.keep())
            group.create_task(workers.run())
            group.create_task(intake.run(config.model))
            group.create_task(board.run())

    try:
        await _first_of(asyncio.create_task(own()), signalled)
    finally:
        await ownership.release()
        links.close()
        await intake.give_back_all()
        await server.stop(grace_s=1.0)
        await bus.close()
        telemetry.shutdown()


async def _first_of(*tasks: asyncio.Task[None]) -> None:
    """Waits until one has ended, cancels the others, and raises what the first one raised."""
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    for task in done:
        task.result()


if __name__ == "__main__":
    main()
