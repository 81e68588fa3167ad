"""The integration stack behind a real gateway, asked over HTTP as a client would."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from prometheus_client import CollectorRegistry

from millrace.bus.memory import MemoryBus
from millrace.gateway.__main__ import Gateway
from millrace.gateway.config import GatewayConfig
from millrace.scheduler.config import SchedulerConfig
from millrace.telemetry.metrics import create_registry
from tests.integration.gateway import MODEL
from tests.integration.stack import Stack

COMPLETIONS = "/v1/completions"
WAIT_S = 15.0


@dataclass
class Reply:
    """What came over a stream, and when its first text did."""

    text: str
    ttft_s: float


class EdgeStack:
    """One scheduler, one worker without a model, one gateway; the neighbours are the test's."""

    def __init__(self, stack: Stack, gateway: Gateway, registry: CollectorRegistry) -> None:
        self.stack = stack
        self.gateway = gateway
        self.registry = registry
        self.client = httpx.AsyncClient(
            base_url=f"http://{gateway.http_address}", timeout=WAIT_S, trust_env=False
        )

    async def post(self, prompt: str = "Once", **fields: Any) -> httpx.Response:
        """A whole answer, or a refusal."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 4, "temperature": 0, **fields}
        return await self.client.post(COMPLETIONS, json=body)

    async def stream(self, prompt: str, **fields: Any) -> Reply:
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 4, "temperature": 0, **fields}
        began_s, first_s, text = time.monotonic(), 0.0, ""
        async with self.client.stream("POST", COMPLETIONS, json=body | {"stream": True}) as reply:
            assert reply.status_code == 200, await reply.aread()
            async for line in reply.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                first_s = first_s or time.monotonic()
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                text += "".join(choice["text"] for choice in event["choices"])
        return Reply(text, first_s - began_s)

    async def ready(self) -> tuple[int, list[str]]:
        """Status of /ready, and what it calls degraded."""
        reply = await self.client.get("/ready")
        return reply.status_code, reply.json()["degraded"]

    async def until_ready(self, *degraded: str, status: int = 200) -> None:
        """Waits until /ready says exactly this."""

        async def is_so() -> bool:
            return await self.ready() == (status, list(degraded))

        await until(is_so)

    def sample(self, name: str, **labels: str) -> float:
        """A metric of the gateway; 0 where it was never counted."""
        return self.registry.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def edge_stack(config: SchedulerConfig, **settings: Any) -> AsyncIterator[EdgeStack]:
    """Started and ready; at its end nothing may be left of any request."""
    bus = MemoryBus()
    stack = Stack(bus, config)
    await stack.start()
    registry = create_registry("gateway")
    gateway = Gateway(GatewayConfig(http_port=0, grpc_port=0, **settings), bus, registry)
    forever = asyncio.Event()
    await gateway.start()
    running = asyncio.create_task(gateway.run(_until(forever)))
    edge = EdgeStack(stack, gateway, registry)
    try:
        await stack.add_worker()

        async def is_ready() -> bool:
            return (await edge.ready())[0] == 200

        await until(is_ready)
        yield edge
        await stack.check_empty()
    finally:
        await edge.client.aclose()
        forever.set()
        await running
        await gateway.stop()
        await stack.stop()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for what has to be asked for."""
    async with asyncio.timeout(WAIT_S):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.05)


async def _until(event: asyncio.Event) -> None:
    await event.wait()
