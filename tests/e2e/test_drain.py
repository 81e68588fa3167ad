"""SIGTERM to each service of a stack of real processes, over a tiny model, with a stream live."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from millrace.bus.setup import init_bus
from millrace.testing.servers import LocalServer, free_port, start_nats, start_valkey
from tests.faults.local_service import make_service
from tests.faults.tiny_model import write_tiny_model

pytestmark = pytest.mark.e2e

MODEL = "tiny"
WAIT_S = 30.0
# What `millrace up` grants the slowest of them before SIGKILL.
GRACE_S = 15.0
MAX_TOKENS = 1000
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@dataclass
class Services:
    """The processes by name, and where clients ask."""

    processes: dict[str, LocalServer]
    grpc_address: str

    @property
    def http_url(self) -> str:
        return f"http://{self.processes['gateway'].url}"

    def address_of(self, name: str) -> str:
        return self.grpc_address if name == "gateway" else self.processes[name].url


@dataclass
class Stream:
    """A stream being read: its text so far, and its end."""

    text: str = ""
    finish_reason: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until_begun(self) -> None:
        async with asyncio.timeout(WAIT_S):
            while not self.text:
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Two of each that may have a replica."""
    folder = tmp_path_factory.mktemp("drain")
    with ExitStack() as stack, ThreadPoolExecutor(4) as threads:
        nats = stack.enter_context(start_nats(folder))
        valkey = stack.enter_context(start_valkey(folder))
        threads.submit(lambda: asyncio.run(init_bus(nats.url, [MODEL]))).result(WAIT_S)
        made = _make(folder, nats.url, valkey.url)
        for server in made.processes.values():
            stack.callback(server.stop)
        list(threads.map(LocalServer.start, made.processes.values()))
        yield made


def _make(folder: Path, nats_url: str, redis_url: str) -> Services:
    model = write_tiny_model(folder / MODEL)
    processes = {"cache": make_service("cache", folder, redis_url=redis_url)}
    for number in (1, 2):
        processes |= {
            f"tokenizer-{number}": make_service("tokenizer", folder, models=model),
            f"scheduler-{number}": make_service(
                "scheduler", folder, nats_url=nats_url, model=MODEL
            ),
            f"worker-{number}": make_service(
                "worker", folder, nats_url=nats_url, model=model, num_threads=1, dtype="float32"
            ),
        }
    grpc_port = free_port()
    processes["gateway"] = make_service(
        "gateway",
        folder,
        port_setting="http_port",
        grpc_port=grpc_port,
        nats_url=nats_url,
        cache_address=processes["cache"].url,
        tokenizer_addresses=",".join(processes[f"tokenizer-{n}"].url for n in (1, 2)),
    )
    return Services(processes, f"127.0.0.1:{grpc_port}")


@pytest.fixture
async def client(services: Services) -> AsyncIterator[httpx.AsyncClient]:
    """Ready, with every process there."""
    async with httpx.AsyncClient(
        base_url=services.http_url, timeout=WAIT_S, trust_env=False
    ) as made:
        async with asyncio.timeout(WAIT_S):
            while True:
                reply = await made.get("/ready")
                if reply.status_code == 200 and not reply.json()["degraded"]:
                    break
                await asyncio.sleep(0.1)
        yield made


@asynccontextmanager
async def _restarted_afterwards(server: LocalServer) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)


async def _read(client: httpx.AsyncClient, stream: Stream) -> Stream:
    body = {
        "model": MODEL,
        "prompt": "Once",
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "stream": True,
    }
    async with client.stream("POST", "/v1/completions", json=body) as reply:
        assert reply.status_code == 200, await reply.aread()
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                for choice in event["choices"]:
                    stream.text += choice["text"]
                    stream.finish_reason = choice["finish_reason"] or ""
                stream.changed.set()
    return stream


async def _drain(server: LocalServer, address: str) -> tuple[float, float]:
    """SIGTERM; seconds until health said NOT_SERVING, and until the process had ended with 0."""
    assert server.process is not None
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        began_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(GRACE_S):
            while (await watch.read()).status != NOT_SERVING:
                pass
        told_s = time.monotonic() - began_s
        assert server.process.poll() is None, "it says so before it ends"
        assert await asyncio.to_thread(server.process.wait, GRACE_S) == 0
    log = server.log.read_text()
    assert "Traceback" not in log, log
    return told_s, time.monotonic() - began_s


async def _whole(client: httpx.AsyncClient) -> str:
    return (await _read(client, Stream())).text


@pytest.mark.parametrize(
    "name", ["cache", "tokenizer-1", "tokenizer-2", "scheduler", "worker-1", "worker-2"]
)
async def test_service_drains_and_the_stream_goes_on_to_the_same_end(
    services: Services, client: httpx.AsyncClient, name: str
) -> None:
    undisturbed = await _whole(client)
    if name == "scheduler":
        name = await _active_scheduler(services)
    server = services.processes[name]
    async with _restarted_afterwards(server):
        reading = asyncio.create_task(_read(client, stream := Stream()))
        await stream.until_begun()
        told_s, ended_s = await _drain(server, services.address_of(name))
        assert told_s < 1.0
        assert ended_s < GRACE_S
        await reading
        assert (stream.text, stream.finish_reason) == (undisturbed, "length")


async def test_gateway_drains_its_stream_to_the_end_and_takes_no_new_request(
    services: Services, client: httpx.AsyncClient
) -> None:
    undisturbed = await _whole(client)
    server = services.processes["gateway"]
    async with _restarted_afterwards(server):
        reading = asyncio.create_task(_read(client, stream := Stream()))
        await stream.until_begun()
        draining = asyncio.create_task(_drain(server, services.grpc_address))
        async with asyncio.timeout(WAIT_S):
            while True:
                if (await client.get("/ready")).json()["status"] == "draining":
                    break
                await asyncio.sleep(0.01)
        assert not reading.done()
        refused = await client.post("/v1/completions", json={"model": MODEL, "prompt": "a"})
        assert refused.status_code == 503
        assert "shutting down" in refused.json()["error"]["message"]
        await reading
        assert (stream.text, stream.finish_reason) == (undisturbed, "length")
        told_s, ended_s = await draining
        assert told_s < 1.0
        assert ended_s < GRACE_S


async def _active_scheduler(services: Services) -> str:
    """The one whose log says that it has the model last."""
    logs = {
        name: server.log.read_text()
        for name, server in services.processes.items()
        if name.startswith("scheduler")
    }
    (active,) = (name for name, log in logs.items() if "active for tiny" in log)
    return active
