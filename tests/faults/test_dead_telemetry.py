"""Fault F20: the OTLP endpoint hangs or is gone; requests do not feel it, and its spans count."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from millrace.bus.nats import connect_bus
from millrace.bus.setup import init_bus
from millrace.scheduler.config import SchedulerConfig
from millrace.testing.servers import free_port, start_nats
from tests.faults.local_service import start_service
from tests.faults.tiny_model import write_tiny_model
from tests.integration.gateway import MODEL
from tests.integration.stack import Stack

NUM_ASKED = 30
WAIT_S = 20.0
DROPPED = re.compile(r"^millrace_spans_dropped_total (\S+)$", re.MULTILINE)
EXPORTED = re.compile(r"^millrace_spans_exported_total (\S+)$", re.MULTILINE)


class _Endpoint:
    """Takes spans, or holds every connection open without a word."""

    def __init__(self) -> None:
        self.hangs = False
        self._woken = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = re.search(rb"(?i)content-length: (\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            if self.hangs:
                await self._woken.wait()
                break
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    def wake(self) -> None:
        self._woken.set()


@pytest.fixture
async def endpoint(no_task_fails_unheard: None) -> AsyncIterator[tuple[_Endpoint, asyncio.Server]]:
    made = _Endpoint()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await made.serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield made, server
    made.wake()
    server.close()
    await server.wait_closed()


@pytest.fixture
async def gateway(
    endpoint: tuple[_Endpoint, asyncio.Server],
    tmp_path: Path,
    config: SchedulerConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway process that exports its spans there, over a scheduler and a worker of ours."""
    model = write_tiny_model(tmp_path / MODEL)
    port = endpoint[1].sockets[0].getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    with start_nats(tmp_path) as nats:
        await init_bus(nats.url, [MODEL])
        bus = await connect_bus(nats.url, name="test")
        stack = Stack(bus, config)
        await stack.start()
        await stack.add_worker()
        tokenizer = start_service("tokenizer", tmp_path, models=model)
        tokenizer_server = await asyncio.to_thread(tokenizer.__enter__)
        settings = {
            "nats_url": nats.url,
            "grpc_port": free_port(),
            "tokenizer_addresses": tokenizer_server.url,
        }
        service = start_service("gateway", tmp_path, port_setting="http_port", **settings)
        server = await asyncio.to_thread(service.__enter__)
        try:
            async with httpx.AsyncClient(
                base_url=f"http://{server.url}", timeout=WAIT_S, trust_env=False
            ) as client:
                await _until_ready(client)
                yield client
        finally:
            await asyncio.to_thread(service.__exit__, None, None, None)
            await asyncio.to_thread(tokenizer.__exit__, None, None, None)
            await stack.stop()
            await bus.close()


async def _until_ready(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            if (await client.get("/ready")).status_code == 200:
                return
            await asyncio.sleep(0.1)


async def _longest_ttft_s(client: httpx.AsyncClient) -> float:
    longest_s = 0.0
    for number in range(NUM_ASKED):
        body = {"model": MODEL, "prompt": f"Text {number}", "max_tokens": 4, "stream": True}
        began_s = time.monotonic()
        async with client.stream("POST", "/v1/completions", json=body) as reply:
            lines = [line async for line in reply.aiter_lines() if line.startswith("data: {")]
        assert "error" not in json.loads(lines[-1].removeprefix("data: "))
        longest_s = max(longest_s, time.monotonic() - began_s)
    return longest_s


async def _count(client: httpx.AsyncClient, pattern: re.Pattern[str]) -> float:
    found = pattern.search((await client.get("/metrics")).text)
    assert found is not None
    return float(found[1])


async def _until_more(client: httpx.AsyncClient, pattern: re.Pattern[str], than: float) -> float:
    async with asyncio.timeout(WAIT_S):
        while True:
            count = await _count(client, pattern)
            if count > than:
                return count
            await asyncio.sleep(0.2)


async def test_f20_hanging_and_dead_endpoints_cost_spans_and_no_time(
    gateway: httpx.AsyncClient, endpoint: tuple[_Endpoint, asyncio.Server]
) -> None:
    taking, server = endpoint
    usual_s = await _longest_ttft_s(gateway)
    assert await _until_more(gateway, EXPORTED, 0) > 0
    assert await _count(gateway, DROPPED) == 0

    taking.hangs = True
    assert await _longest_ttft_s(gateway) < usual_s + 0.25
    num_dropped = await _until_more(gateway, DROPPED, 0)

    server.close()
    taking.wake()
    # The exporter rests after a failure: what comes meanwhile is dropped without a try.
    assert await _longest_ttft_s(gateway) < usual_s + 0.25
    assert await _until_more(gateway, DROPPED, num_dropped) > num_dropped
