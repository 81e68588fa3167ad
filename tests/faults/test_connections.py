"""Fault F28: more connections than the gateway holds, with a limit of a few."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from millrace.rpc.client import open_channel
from millrace.scheduler.config import SchedulerConfig
from millrace.testing.servers import LocalServer
from tests.faults.edge_stack import EdgeStack, edge_stack, until
from tests.faults.local_service import start_service
from tests.faults.tiny_model import write_tiny_model
from tests.integration.gateway import MODEL

MAX_CONNECTIONS = 12
HEAD_TIMEOUT_S = 1.0
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


# One per test: gRPC holds on to its connection with a server that lives.
@pytest.fixture
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    folder = tmp_path_factory.mktemp("models")
    model: Path = write_tiny_model(folder / MODEL)
    with start_service("tokenizer", folder, models=model) as server:
        yield server


@pytest.fixture
async def edge(
    config: SchedulerConfig,
    tokenizer: LocalServer,
    no_task_fails_unheard: None,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[EdgeStack]:
    monkeypatch.setattr("millrace.gateway.__main__.HEAD_TIMEOUT_S", HEAD_TIMEOUT_S)
    settings = {"tokenizer_addresses": (tokenizer.url,), "max_connections": MAX_CONNECTIONS}
    async with edge_stack(config, **settings) as made:
        yield made


async def _connect(address: str, count: int, stack: AsyncExitStack) -> list[Connection]:
    host, _, port = address.rpartition(":")
    made = [await asyncio.open_connection(host, int(port)) for _ in range(count)]
    for _, writer in made:
        stack.callback(writer.close)
    return made


async def _is_closed(connection: Connection) -> bool:
    reader, _ = connection
    try:
        async with asyncio.timeout(HEAD_TIMEOUT_S + 2.0):
            while await reader.read(4096):
                pass
    except TimeoutError:
        return False
    except ConnectionResetError:
        return True
    return True


async def test_f28_idle_connections_do_not_stop_streams_and_are_closed_in_time(
    edge: EdgeStack,
) -> None:
    alone = await edge.stream("Go on", max_tokens=80)
    node = edge.stack.workers["w"]
    node.engine.gate.clear()
    stream = asyncio.create_task(edge.stream("Go on", max_tokens=80))
    await edge.stack.until(lambda: len(edge.stack.service.ledger) == 1)
    async with AsyncExitStack() as stack:
        idle = await _connect(edge.gateway.http_address, MAX_CONNECTIONS + 2, stack)
        async with httpx.AsyncClient(trust_env=False) as another:
            refused = await another.get(f"http://{edge.gateway.http_address}/health")
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["message"].endswith("12 connections, which is its limit")
        idle += await _connect(edge.gateway.http_address, 5 * MAX_CONNECTIONS, stack)
        node.engine.gate.set()
        assert (await stream).text == alone.text
        closed = await asyncio.gather(*(_is_closed(each) for each in idle))
        assert all(closed), "who says nothing does not keep a place"
    async with httpx.AsyncClient(trust_env=False) as another:
        served = await another.get(f"http://{edge.gateway.http_address}/health")
    assert served.status_code == 200


async def test_f28_header_that_trickles_in_is_cut(edge: EdgeStack) -> None:
    async with AsyncExitStack() as stack:
        ((reader, writer),) = await _connect(edge.gateway.http_address, 1, stack)
        writer.write(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")

        async def trickle() -> None:
            writer.write(b"GET /health HTTP/1.1\r\n")
            while True:
                writer.write(b"x-a: b\r\n")
                await asyncio.sleep(0.1)

        trickling = asyncio.create_task(trickle())
        assert await _is_closed((reader, writer))
        trickling.cancel()


async def test_f28_grpc_connections_beyond_the_limit_are_closed_and_calls_go_on(
    edge: EdgeStack,
) -> None:
    address = edge.gateway.rpc_address
    channel = open_channel(address)
    await until(lambda: _is_served(channel))
    async with AsyncExitStack() as stack:
        idle = await _connect(address, MAX_CONNECTIONS - 1, stack)
        beyond = await _connect(address, 5, stack)
        assert all(await asyncio.gather(*(_is_closed(each) for each in beyond)))
        another = open_channel(address)
        assert not await _is_served(another)
        assert await _is_served(channel)
        for _, writer in idle:
            writer.close()
        await until(lambda: _is_served(another))
        await another.close()
    await channel.close()


async def _is_served(channel: grpc.aio.Channel) -> bool:
    check = health_pb2_grpc.HealthStub(channel).Check(  # type: ignore[attr-defined]
        health_pb2.HealthCheckRequest(), timeout=5.0
    )
    try:
        return bool((await check).status == health_pb2.HealthCheckResponse.SERVING)
    except grpc.aio.AioRpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        return False
