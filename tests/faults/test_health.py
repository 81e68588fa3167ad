"""The gateway's health by gRPC and its /ready say the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from millrace.bus.memory import MemoryBus
from millrace.gateway.__main__ import Gateway
from millrace.gateway.config import GatewayConfig
from millrace.rpc.client import open_channel
from millrace.scheduler.config import SchedulerConfig
from millrace.testing.servers import LocalServer
from tests.faults.edge_stack import edge_stack
from tests.faults.local_service import start_service
from tests.faults.tiny_model import write_tiny_model
from tests.integration.gateway import MODEL

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
async def alone() -> AsyncIterator[Gateway]:
    """A gateway without any neighbour."""
    settings = GatewayConfig(http_port=0, grpc_port=0, tokenizer_addresses=("127.0.0.1:1",))
    gateway = Gateway(settings, MemoryBus(), CollectorRegistry())
    await gateway.start()
    yield gateway
    await gateway.stop()


@pytest.fixture
def tokenizer(tmp_path: Path) -> Iterator[LocalServer]:
    model = write_tiny_model(tmp_path / MODEL)
    with start_service("tokenizer", tmp_path, models=model) as server:
        yield server


async def _statuses(address: str, num: int) -> list[int]:
    """What a watcher hears, one after the other."""
    channel = open_channel(address)
    stub: Any = health_pb2_grpc.HealthStub(channel)
    seen: list[int] = []
    try:
        async with asyncio.timeout(20):
            async for answer in stub.Watch(health_pb2.HealthCheckRequest()):
                seen.append(answer.status)
                if len(seen) == num:
                    return seen
    finally:
        await channel.close()
    return seen


async def test_a_gateway_that_has_just_bound_is_not_serving(alone: Gateway) -> None:
    assert await _statuses(alone.rpc_address, 1) == [NOT_SERVING]


async def test_whoever_heard_ready_by_http_hears_serving_by_grpc(
    config: SchedulerConfig, tokenizer: LocalServer
) -> None:
    # That the stack is ready is known from /ready; nothing more is waited for here.
    quick = replace(config, canary_every_s=0.2)
    async with edge_stack(quick, tokenizer_addresses=(tokenizer.url,)) as edge:
        for _ in range(2):
            assert await _statuses(edge.gateway.rpc_address, 1) == [SERVING]
            edge.stack.workers["w"].engine.num_failing_steps = 1_000_000
            await edge.until_ready(status=503)
            assert await _statuses(edge.gateway.rpc_address, 1) == [NOT_SERVING]
            edge.stack.workers["w"].engine.num_failing_steps = 0
            await edge.until_ready()
