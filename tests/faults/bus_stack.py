"""Gateways with both edges, a scheduler and a worker, each with a connection of its own to NATS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
from prometheus_client import CollectorRegistry

from millrace.bus.configuration import request_stream_config
from millrace.bus.nats import NatsBus, connect_bus
from millrace.bus.setup import init_bus
from millrace.core.request import QueuedRequest
from millrace.gateway.access_log import AccessLog
from millrace.gateway.directory import ModelDirectory
from millrace.gateway.frames import FrameRouter
from millrace.gateway.health import Health
from millrace.gateway.http.app import create_app
from millrace.gateway.http.edge import HttpEdge
from millrace.gateway.members import watch_members
from millrace.gateway.pipeline import Pipeline
from millrace.gateway.servicer import SERVICE_NAME, InferenceServicer
from millrace.rpc.client import open_channel
from millrace.rpc.server import RpcServer
from millrace.scheduler.config import SchedulerConfig
from millrace.telemetry.metrics import GatewayMetrics
from millrace.testing.model_worker import expected_output
from millrace.v1 import inference_pb2, inference_pb2_grpc
from millrace.wire.scheduler_client import AttachStream
from millrace.worker.announce import announce
from tests.faults.faulty_engine import FaultyEngine
from tests.integration.gateway import MODEL
from tests.integration.stack import Stack
from tests.unit.gateway.conftest import FakeRecords, FakeTokenizer

HEARTBEAT_S = 0.5
READY_S = 20.0


class RecordingBus:
    """A bus that remembers what was asked of it."""

    def __init__(self, bus: NatsBus) -> None:
        self._bus = bus
        self.requests: dict[str, QueuedRequest] = {}

    async def publish_request(self, request: QueuedRequest, headers: Mapping[str, str]) -> None:
        self.requests[request.request_id] = request
        await self._bus.publish_request(request, headers)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)


@dataclass
class Reply:
    """What a gRPC client got: tokens and the end, or a status."""

    request_id: str = ""
    token_ids: list[int] = field(default_factory=list)
    is_finished: bool = False
    error: grpc.aio.AioRpcError | None = None
    task: asyncio.Task[None] | None = None

    @property
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.OK if self.error is None else self.error.code()

    async def done(self, timeout_s: float = 30.0) -> Reply:
        assert self.task is not None
        await asyncio.wait_for(self.task, timeout_s)
        return self


class EdgeGateway:
    """A gateway service without its process. Tokens are bytes; `records` is shared by gateways."""

    def __init__(self, gateway_id: str, bus: NatsBus, records: FakeRecords) -> None:
        self.bus = RecordingBus(bus)
        self._channels: dict[str, grpc.aio.Channel] = {}
        self.directory = ModelDirectory("")
        registry = CollectorRegistry()
        metrics = GatewayMetrics(registry)
        tokenizer = FakeTokenizer()
        self.router = FrameRouter(
            lambda address: AttachStream.open(self._channel(address), gateway_id),
            tokenizer,
            self.directory,
            bus.publish_abort,
            metrics.stale_frames_dropped.inc,
        )
        self.pipeline = Pipeline(
            gateway_id,
            self.directory,
            tokenizer,
            None,
            self.router,
            self.bus,
            metrics,
            idempotency_records=records,
        )
        self.health = Health(bus, tokenizer, None, self.directory, lambda: False)
        self._edge = HttpEdge(
            self.pipeline, self.directory, self.health, registry, AccessLog(metrics)
        )
        self._server = RpcServer("gateway", "127.0.0.1", 0)

    async def start(self) -> None:
        self._watching = asyncio.create_task(watch_members(self.bus, self.directory, self.router))
        servicer = InferenceServicer(self.pipeline, self.directory)
        add = inference_pb2_grpc.add_InferenceServiceServicer_to_server
        self._server.add(add, servicer, SERVICE_NAME)
        self._client_channel = open_channel(await self._server.start())
        self._stub: Any = inference_pb2_grpc.InferenceServiceStub(self._client_channel)
        await self.until_ready()

    async def until_ready(self) -> None:
        """As /ready says."""
        async with asyncio.timeout(READY_S):
            while not (await self.health.readiness()).is_ready:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    def send(self, text: str = "hello", *, max_tokens: int = 20, key: str = "") -> Reply:
        """A streamed Generate by gRPC, under way."""
        reply = Reply()
        request = inference_pb2.GenerateRequest(model=MODEL, text=text)
        request.options.sampling.max_tokens = max_tokens
        request.options.sampling.ignore_eos = True
        if key:
            request.options.idempotency_key = key
        reply.task = asyncio.create_task(self._read(request, reply))
        return reply

    async def _read(self, request: inference_pb2.GenerateRequest, reply: Reply) -> None:
        try:
            async for event in self._stub.Generate(request, timeout=60):
                if event.HasField("started"):
                    reply.request_id = event.started.request_id
                elif event.HasField("delta"):
                    reply.token_ids += event.delta.token_ids
                elif event.HasField("finished"):
                    reply.is_finished = True
        except grpc.aio.AioRpcError as exc:
            reply.error = exc

    def check(self, reply: Reply) -> None:
        """The same tokens as without any fault."""
        assert reply.error is None and reply.is_finished, reply.error
        output, _ = expected_output(self.bus.requests[reply.request_id])
        assert reply.token_ids == output

    @asynccontextmanager
    async def http(self) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(create_app(self._edge), raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://gateway", timeout=30
        ) as client:
            yield client

    async def complete(self, **headers: str) -> httpx.Response:
        """One completion by HTTP, not streamed."""
        async with self.http() as client:
            body = {"model": MODEL, "prompt": "hello", "max_tokens": 8}
            return await client.post("/v1/completions", json=body, headers=headers)

    async def stop(self) -> None:
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        await self._client_channel.close()
        await self._server.stop(0)
        await self.pipeline.finish_errands()
        await self.router.close()
        for channel in self._channels.values():
            await channel.close()

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = open_channel(address)
        return self._channels[address]


class BusStack(Stack):
    """`check_empty` at the end: no request, no block, and no message on the queue."""

    def __init__(self, url: str, bus: NatsBus, config: SchedulerConfig) -> None:
        super().__init__(bus, config)
        self.url = url
        self.records = FakeRecords()
        self.edges: list[EdgeGateway] = []
        self.engine: FaultyEngine | None = None
        self._buses = [bus]
        self._announcing: list[asyncio.Task[None]] = []

    async def connect(self, name: str, url: str = "") -> NatsBus:
        """Another connection; ended with the stack."""
        bus = await connect_bus(url or self.url, name=name)
        self._buses.append(bus)
        return bus

    async def add_announced_worker(self, step_s: float = 0.0) -> FaultyEngine:
        """A worker that renews its entry over a connection of its own."""
        self.engine = FaultyEngine(step_s=step_s)
        node = await self.add_engine("w", self.engine)
        bus = await self.connect("worker")
        self._announcing.append(
            asyncio.create_task(announce(bus, node.registration, node.servicer.load, HEARTBEAT_S))
        )
        return self.engine

    async def add_edge(self, gateway_id: str = "edge") -> EdgeGateway:
        edge = EdgeGateway(gateway_id, await self.connect(gateway_id), self.records)
        await edge.start()
        self.edges.append(edge)
        return edge

    async def num_messages(self) -> int:
        """On the request stream."""
        session = await self._buses[0]._link.session()
        info = await session.jetstream.stream_info("MR_V1_REQ")
        return info.state.messages

    async def shrink_queue(self, **limits: int) -> None:
        """As an operator may, on a running stack."""
        session = await self._buses[0]._link.session()
        await session.jetstream.update_stream(request_stream_config().evolve(**limits))

    def num_dead_letters(self) -> int:
        """As the metric counts."""
        return int(self.service._dead_letters._metrics.dlq._value.get())

    async def until_drained(self, timeout_s: float = 10.0) -> None:
        async with asyncio.timeout(timeout_s):
            while await self.num_messages():  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def until_settled(self, timeout_s: float = 10.0) -> None:
        """No message waits or is held."""
        session = await self._buses[0]._link.session()
        async with asyncio.timeout(timeout_s):
            while any(  # noqa: ASYNC110
                info.num_pending or info.num_ack_pending
                for info in await session.jetstream.consumers_info("MR_V1_REQ")
            ):
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
        for edge in self.edges:
            await edge.stop()
        for task in self._announcing:
            task.cancel()
        await asyncio.gather(*self._announcing, return_exceptions=True)
        await super().stop()
        for bus in self._buses:
            await bus.close()


@asynccontextmanager
async def bus_stack(
    url: str, config: SchedulerConfig, *, step_s: float = 0.0, drains: bool = True
) -> AsyncIterator[BusStack]:
    """With one worker. Nothing may be left at its end; `drains` False: but settled messages."""
    await init_bus(url, [MODEL])
    stack = BusStack(url, await connect_bus(url, name="scheduler"), config)
    await stack.start()
    try:
        await stack.add_announced_worker(step_s)
        yield stack
        await stack.check_empty()
        await stack.until_settled()
        if drains:
            await stack.until_drained()
    finally:
        await stack.stop()


async def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    """Polls with a deadline."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
