"""Wires the worker service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import uuid

import uvloop

from millrace.bus.nats import connect_bus
from millrace.config.home import millrace_home
from millrace.config.loader import load_config
from millrace.core.errors import Unavailable
from millrace.core.membership import WorkerRegistration
from millrace.engine.config import EngineConfig
from millrace.engine.engine import Engine, create_engine
from millrace.engine.progress_text import only_last_steps
from millrace.hub.catalog import resolve_model
from millrace.internal.v1 import worker_pb2_grpc
from millrace.rpc.advertised import advertised_address
from millrace.rpc.run import exit_on_error, run_until_first, tell_ready
from millrace.rpc.server import RpcServer
from millrace.rpc.signals import run_until_signalled
from millrace.telemetry.metrics import (
    BusMetrics,
    WorkerMetrics,
    create_registry,
    start_metrics_server,
)
from millrace.telemetry.setup import configure_logging, start_telemetry

from .announce import announce
from .config import WorkerConfig
from .engine_loop import EngineLoop
from .engine_watch import EngineLost, watch_engine
from .load import resident_bytes
from .servicer import WorkerServicer
from .warm_up import warm_up

_log = logging.getLogger(__name__)

SERVICE_NAME = "millrace.internal.v1.WorkerService"
UNREGISTER_TIMEOUT_S = 1.0
# How long the step under way may take after the end has come.
STEP_GRACE_S = 5.0


def main() -> None:
    """Runs until SIGTERM or SIGINT, or until the engine is lost."""
    with exit_on_error("worker"):
        config = load_config(WorkerConfig, "worker")
        configure_logging("worker")
        try:
            uvloop.run(serve(config, load_engine(config)))
        except EngineLost as error:
            print(f"millrace worker: {error}", file=sys.stderr, flush=True)
            # A thread that hangs inside the device would hold up the interpreter's own end.
            os._exit(1)


def load_engine(config: WorkerConfig) -> Engine:
    """Loads the model and runs it once before anything listens: a worker that answers can run."""
    entry = resolve_model(config.model)
    engine = create_engine(
        EngineConfig(
            model_path=entry.path,
            name=entry.name,
            aliases=entry.aliases,
            revision=entry.revision,
            dtype=config.dtype,
            device=config.device,
            backend=config.backend,
            route=config.route,
            num_blocks=config.num_blocks,
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            max_model_len=config.max_model_len,
            num_threads=config.num_threads,
            quantization=config.quantization,
            kv_dtype=config.kv_dtype,
            instruction_path=config.instruction_path,
            cache_dir=millrace_home().cache,
        ),
        only_last_steps(_log.info),
    )
    warm_up(engine)
    return engine


async def serve(config: WorkerConfig, engine: Engine) -> None:
    """Serves the engine until the process is told to end."""
    telemetry = start_telemetry("worker")
    registry = create_registry("worker", telemetry)
    loop = EngineLoop(engine)
    loop.start()
    server = RpcServer("worker", config.host, config.port)
    registration = WorkerRegistration(
        worker_id=config.worker_id or f"worker-{uuid.uuid4().hex[:8]}",
        boot_id=uuid.uuid4().hex,
        advertise_address=config.advertise_address,
        model=engine.info,
        num_blocks=engine.num_blocks,
        block_size=engine.block_size,
        max_num_seqs=engine.max_num_seqs,
    )
    metrics = WorkerMetrics(registry, engine.info.name, registration.worker_id)
    metrics.watch(lambda: loop.num_rows, resident_bytes)
    servicer = WorkerServicer(registration, loop, metrics)
    server.add(worker_pb2_grpc.add_WorkerServiceServicer_to_server, servicer, SERVICE_NAME)
    bus = await connect_bus(config.nats_url, name="worker")
    BusMetrics(registry, lambda: bus.is_connected)
    step_grace_s = STEP_GRACE_S

    async def run() -> None:
        address = await server.start()
        servicer.advertise(
            await advertised_address(config.advertise_address, address, config.nats_url)
        )
        if config.metrics_port:
            await start_metrics_server(registry, config.host, config.metrics_port)
        tell_ready("worker", address)
        await announce(bus, servicer.registration, servicer.load, config.heartbeat_s)

    try:
        # The signal handlers stand before the ready line: whoever reads it may end the process.
        watch = watch_engine(loop, config.max_stall_s)
        await run_until_first(run_until_signalled(), run(), watch)
    except EngineLost:
        step_grace_s = 0.0
        raise
    finally:
        await server.set_serving(False)
        servicer.end()
        # The entry has a time to live, should the bus not answer.
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(UNREGISTER_TIMEOUT_S):
                await bus.unregister_worker(registration.worker_id)
        await server.stop(grace_s=1.0)
        await asyncio.to_thread(loop.stop, step_grace_s)
        await bus.close()
        telemetry.shutdown()


if __name__ == "__main__":
    main()
