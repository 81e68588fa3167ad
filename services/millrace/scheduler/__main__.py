"""Wires the scheduler service."""

from __future__ import annotations

import uvloop

from millrace.bus.nats import connect_bus
from millrace.config.loader import load_config
from millrace.rpc.run import exit_on_error, run_until_first, tell_ready
from millrace.rpc.signals import run_until_signalled
from millrace.telemetry.metrics import (
    BusMetrics,
    SchedulerMetrics,
    create_registry,
    start_metrics_server,
)
from millrace.telemetry.setup import configure_logging, start_telemetry

from .config import SchedulerConfig
from .service import SchedulerService


def main() -> None:
    """Runs until SIGTERM or SIGINT."""
    with exit_on_error("scheduler"):
        config = load_config(SchedulerConfig, "scheduler")
        configure_logging("scheduler")
        uvloop.run(serve(config))


async def serve(config: SchedulerConfig) -> None:
    """Claims the model and schedules until told to end or until another scheduler owns it."""
    telemetry = start_telemetry("scheduler")
    registry = create_registry("scheduler", telemetry)
    bus = await connect_bus(config.nats_url, name="scheduler")
    BusMetrics(registry, lambda: bus.is_connected)
    service = SchedulerService(config, bus, SchedulerMetrics(registry, config.model))

    async def run() -> None:
        address = await service.start()
        if config.metrics_port:
            await start_metrics_server(registry, config.host, config.metrics_port)
        tell_ready("scheduler", address)
        await service.run()

    try:
        # The signal handlers stand before the ready line: whoever reads it may end the process.
        await run_until_first(run_until_signalled(), run())
    finally:
        await service.stop()
        await bus.close()
        telemetry.shutdown()


if __name__ == "__main__":
    main()
