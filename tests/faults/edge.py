"""The public edge of a fault stack: a tokenizer and gateways, whole, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from millrace.bus.base import Bus
from millrace.gateway.__main__ import Gateway
from millrace.gateway.config import GatewayConfig
from millrace.internal.v1 import tokenizer_pb2_grpc
from millrace.rpc.server import RpcServer
from millrace.telemetry.metrics import TokenizerMetrics, create_registry
from millrace.testing.tokenizers import write_byte_level
from millrace.tokenizer.__main__ import SERVICE_NAME
from millrace.tokenizer.codec import load_codec
from millrace.tokenizer.servicer import TokenizerServicer
from tests.integration.gateway import MODEL

WAIT_S = 10.0


class TokenizerNode:
    """A tokenizer service without its process. Token ids 3 to 96 are one ASCII character each."""

    def __init__(self, folder: Path) -> None:
        self._executor = ThreadPoolExecutor(1)
        codecs = {MODEL: load_codec(write_byte_level(folder))}
        servicer = TokenizerServicer(
            codecs, self._executor, TokenizerMetrics(create_registry("tokenizer"))
        )
        self._server = RpcServer("tokenizer", "127.0.0.1", 0)
        self._server.add(
            tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server, servicer, SERVICE_NAME
        )

    async def start(self) -> str:
        """Its address."""
        return await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(0)
        self._executor.shutdown()


@dataclass
class Edge:
    """A gateway service without its process."""

    gateway: Gateway
    registry: CollectorRegistry
    _running: asyncio.Task[None]
    _ending: asyncio.Event

    @classmethod
    async def start(cls, bus: Bus, tokenizer_address: str, **settings: Any) -> Edge:
        """Returns when it can take requests for the model."""
        config = GatewayConfig(
            http_port=0, grpc_port=0, tokenizer_addresses=(tokenizer_address,), **settings
        )
        registry = create_registry("gateway")
        gateway = Gateway(config, bus, registry)
        await gateway.start()
        ending = asyncio.Event()
        running = asyncio.create_task(gateway.run(_wait(ending)))
        return cls(gateway, registry, running, ending)

    @property
    def grpc_address(self) -> str:
        return self.gateway.rpc_address

    @property
    def http_address(self) -> tuple[str, int]:
        host, _, port = self.gateway.http_address.rpartition(":")
        return host, int(port)

    @property
    def num_in_flight(self) -> int:
        return self.gateway._pipeline.num_in_flight

    async def until_ready(self, wait_s: float = WAIT_S) -> None:
        """A scheduler with a worker is attached."""
        await self.until(self._is_served, wait_s)

    async def until(self, condition: Callable[[], bool], wait_s: float = WAIT_S) -> None:
        """Waits for the gateway's own state; fails with the gateway where that has failed."""
        async with asyncio.timeout(wait_s):
            while not condition():
                if self._running.done():
                    self._running.result()
                await asyncio.sleep(0.005)

    def cancelled(self, reason: str) -> float:
        """Requests counted as cancelled for a reason."""
        labels = {"model_name": MODEL, "reason": reason}
        return self.registry.get_sample_value("millrace_request_cancelled_total", labels) or 0.0

    async def stop(self) -> None:
        self._ending.set()
        await self._running
        await self.gateway.stop()

    def _is_served(self) -> bool:
        status = self.gateway._directory.status(MODEL)
        return status is not None and status.num_workers > 0


def _wait(event: asyncio.Event) -> Coroutine[Any, Any, None]:
    async def wait() -> None:
        await event.wait()

    return wait()
