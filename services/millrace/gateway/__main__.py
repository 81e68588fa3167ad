"""Wires the gateway service."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import grpc
import uvloop
from prometheus_client import CollectorRegistry

from millrace.bus.base import Bus
from millrace.bus.nats import connect_bus
from millrace.config.loader import load_config
from millrace.rpc.client import open_channel
from millrace.rpc.run import exit_on_error, tell_ready
from millrace.rpc.server import RpcServer
from millrace.rpc.signals import run_until_signalled
from millrace.telemetry.metrics import BusMetrics, GatewayMetrics, create_registry
from millrace.telemetry.setup import configure_logging, start_telemetry
from millrace.v1 import inference_pb2, inference_pb2_grpc
from millrace.wire.cache_client import CacheClient
from millrace.wire.idempotency_client import IdempotencyClient
from millrace.wire.scheduler_client import AttachStream
from millrace.wire.tokenizer_client import TokenizerClient

from .access_log import AccessLog
from .config import GatewayConfig
from .directory import ModelDirectory
from .file_limit import allowed_connections
from .frames import FrameRouter
from .health import Health
from .http.access import turned_away
from .http.app import create_app
from .http.connection_limits import ConnectionLimits
from .http.edge import HttpEdge
from .http.server import HttpServer
from .members import hear_aborts, watch_members
from .pipeline import Pipeline, PipelineLimits
from .rpc_access import RpcAccess
from .servicer import SERVICE_NAME, InferenceServicer

_log = logging.getLogger(__name__)

HEALTH_EVERY_S = 1.0
NOT_READY_EVERY_S = 0.2
DRAIN_POLL_S = 0.05
STOP_GRACE_S = 1.0
# From a connection to the end of its first headers.
HEAD_TIMEOUT_S = 10.0


def main() -> None:
    """Runs until SIGTERM or SIGINT."""
    with exit_on_error("gateway"):
        config = load_config(GatewayConfig, "gateway")
        config.check()
        configure_logging("gateway")
        uvloop.run(serve(config))


async def serve(config: GatewayConfig) -> None:
    """Serves both edges; on a signal refuses new requests, lets running ones end, and returns."""
    telemetry = start_telemetry("gateway")
    registry = create_registry("gateway", telemetry)
    bus = await connect_bus(config.nats_url, name="gateway")
    gateway = Gateway(config, bus, registry, lambda: telemetry.loses_spans)
    try:
        await gateway.start()
        tell_ready("gateway", gateway.http_address)
        _log.info("gRPC on %s", gateway.rpc_address)
        await gateway.run(run_until_signalled())
        await gateway.drain()
    finally:
        await gateway.stop()
        await bus.close()
        telemetry.shutdown()


class Gateway:
    """Every part of the service, put together."""

    def __init__(
        self,
        config: GatewayConfig,
        bus: Bus,
        registry: CollectorRegistry,
        loses_spans: Callable[[], bool] = lambda: False,
    ) -> None:
        self._config = config
        self._bus = bus
        self._gateway_id = uuid.uuid4().hex
        self._channels = Channels()
        metrics = GatewayMetrics(registry)
        BusMetrics(registry, lambda: bus.is_connected)
        channel = self._channels.get
        self._tokenizer = TokenizerClient([channel(each) for each in config.tokenizer_addresses])
        cache = records = None
        if config.cache_address:
            cache = CacheClient(channel(config.cache_address))
            records = IdempotencyClient(channel(config.cache_address))
        self._directory = ModelDirectory(
            config.default_model,
            takes_model_defaults=config.default_sampling == "model",
            on_new=metrics.add_model,
        )
        self._router = FrameRouter(
            self._attach,
            self._tokenizer,
            self._directory,
            bus.publish_abort,
            metrics.stale_frames_dropped.inc,
        )
        self._pipeline = Pipeline(
            self._gateway_id,
            self._directory,
            self._tokenizer,
            cache,
            self._router,
            bus,
            metrics,
            pipeline_limits(config),
            records,
        )
        max_connections = allowed_connections(config.max_connections)
        access_log = AccessLog(metrics, is_written=config.access_log)
        service = inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]
        self._rpc = RpcServer(
            "gateway",
            config.host,
            config.grpc_port,
            max_connections=max_connections,
            watch=RpcAccess(access_log, service),
        )
        self._health = Health(
            bus,
            self._tokenizer,
            cache,
            self._directory,
            lambda: self._pipeline.is_draining,
            self._rpc.set_serving,
            loses_spans,
        )
        self._http = HttpServer(
            create_app(self._edge(registry, access_log)),
            config.host,
            config.http_port,
            ConnectionLimits(
                max_connections,
                HEAD_TIMEOUT_S,
                body_timeout_s=config.body_timeout_s,
                min_body_rate=config.min_body_rate,
                on_turned_away=partial(turned_away, access_log),
            ),
        )
        self.rpc_address = ""
        self.http_address = ""

    async def start(self) -> None:
        """Binds both edges. Raises `ConfigError` where a port is taken."""
        servicer = InferenceServicer(
            self._pipeline,
            self._directory,
            max_batch_size=self._config.max_batch_size,
            max_batch_concurrency=self._config.max_batch_concurrency,
            max_request_bytes=self._config.max_body_bytes,
        )
        add_servicer = inference_pb2_grpc.add_InferenceServiceServicer_to_server
        self._rpc.add(add_servicer, servicer, SERVICE_NAME)
        self.rpc_address = await self._rpc.start(is_serving=False)
        self.http_address = await self._http.start()

    async def run(self, until: Coroutine[Any, Any, None]) -> None:
        """Watches the bus and mirrors readiness until `until` is done; raises what these raise."""
        ending = asyncio.create_task(until)
        background = asyncio.gather(
            watch_members(self._bus, self._directory, self._router),
            hear_aborts(self._bus, self._pipeline.abort_here),
            self._mirror_health(),
        )
        try:
            await asyncio.wait((ending, background), return_when=asyncio.FIRST_COMPLETED)
            if background.done():
                background.result()
        finally:
            ending.cancel()
            background.cancel()
            await asyncio.gather(ending, background, return_exceptions=True)

    async def drain(self) -> None:
        """Refuses new requests; ends those that still run after the setting's time."""
        self._pipeline.start_draining()
        await self._rpc.set_serving(False)
        timeout_s = self._config.drain_timeout_s
        if num_running := self._pipeline.num_in_flight:
            _log.info("draining; running requests: %d, at most %g s", num_running, timeout_s)
        end_s = time.monotonic() + timeout_s
        while self._pipeline.num_in_flight and time.monotonic() < end_s:  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_POLL_S)
        if num_ended := self._pipeline.end_all():
            _log.warning("running requests that were ended: %d", num_ended)

    async def stop(self) -> None:
        """Ends everything."""
        await asyncio.gather(self._http.stop(STOP_GRACE_S), self._rpc.stop(STOP_GRACE_S))
        await self._pipeline.finish_errands()
        await self._router.close()
        await self._tokenizer.close()
        await self._channels.close()

    async def _attach(self, address: str) -> AttachStream:
        return await AttachStream.open(self._channels.get(address), self._gateway_id)

    def _edge(self, registry: CollectorRegistry, access_log: AccessLog) -> HttpEdge:
        config = self._config
        return HttpEdge(
            self._pipeline,
            self._directory,
            self._health,
            registry,
            access_log,
            max_body_bytes=config.max_body_bytes,
            max_batch_size=config.max_batch_size,
            max_batch_concurrency=config.max_batch_concurrency,
            ping_interval_s=config.ping_interval_s,
            write_timeout_s=config.write_timeout_s,
            hosts=config.hosts(),
            origins=config.origins(),
        )

    async def _mirror_health(self) -> None:
        """Keeps the gRPC health service at what /ready would say, asked or not."""
        while True:
            readiness = await self._health.readiness()
            await asyncio.sleep(HEALTH_EVERY_S if readiness.is_ready else NOT_READY_EVERY_S)


class Channels:
    """One channel per address, kept for the life of the process."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}

    def get(self, address: str) -> grpc.aio.Channel:
        """The channel to `host:port`."""
        if address not in self._channels:
            self._channels[address] = open_channel(address)
        return self._channels[address]

    async def close(self) -> None:
        """Closes them all."""
        for channel in self._channels.values():
            await channel.close()


def pipeline_limits(config: GatewayConfig) -> PipelineLimits:
    """The settings that the request path needs."""
    return PipelineLimits(
        max_in_flight=config.max_in_flight,
        max_buffered_events=config.max_buffered_events,
        default_timeout_s=config.default_timeout_s,
        max_timeout_s=config.max_timeout_s,
        trace_content=config.trace_content,
        hold_s=config.hold_s,
    )


if __name__ == "__main__":
    main()
