"""The life of a gRPC server: health, reflection, errors as statuses, an orderly end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from millrace.core.address import join_host_port
from millrace.core.errors import ConfigError

from .call_watch import CallWatch
from .client import KEEPALIVE_TIME_MS, MAX_MESSAGE_BYTES, message_limits
from .interceptors import server_interceptors

# A connection that says nothing, and one without calls: clients connect again by themselves.
HANDSHAKE_TIMEOUT_MS = 10_000
MAX_IDLE_MS = 300_000

AddToServer = Callable[[Any, grpc.aio.Server], None]


class RpcServer:
    """A grpc.aio server with the standard health and reflection services.

    Its health is NOT_SERVING until `start`, and again from `stop` on. More than `max_connections`
    are closed at once, and idle ones after a while; 0: any number, for as long as they like.
    `watch` hears of every call.
    """

    def __init__(
        self,
        service: str,
        host: str,
        port: int,
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_connections: int = 0,
        watch: CallWatch | None = None,
    ) -> None:
        self.service = service
        self._host = host
        self._port = port
        self._is_serving: bool | None = None
        self._health_lock = asyncio.Lock()
        self._names = [health.SERVICE_NAME, reflection.SERVICE_NAME]
        self._server = grpc.aio.server(
            interceptors=server_interceptors(watch),
            options=[
                *message_limits(max_message_bytes),
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_TIME_MS // 2),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_TIME_MS // 2),
                ("grpc.http2.max_ping_strikes", 0),
                *_connection_limits(max_connections),
            ],
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    def add(self, add_to_server: AddToServer, servicer: object, full_name: str) -> None:
        """Serves `servicer` under the proto name `full_name`."""
        add_to_server(servicer, self._server)
        self._names.append(full_name)

    async def start(self, *, is_serving: bool = True) -> str:
        """Binds, serves, and returns `host:port`. Raises `ConfigError` if the port is taken.

        Its health is SERVING from then on, or with `is_serving` False once `set_serving` says so.
        """
        reflection.enable_server_reflection(self._names, self._server)
        address = join_host_port(self._host, self._port)
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as exc:
            raise ConfigError(
                f"{self.service} cannot listen on {address}; is the port in use, "
                "and the host one of this machine?"
            ) from exc
        await self.set_serving(False)
        await self._server.start()
        if is_serving:
            await self.set_serving(True)
        return join_host_port(self._host, port)

    async def set_serving(self, is_serving: bool) -> None:
        """Says by the health service whether calls are welcome."""
        statuses = health_pb2.HealthCheckResponse
        status = statuses.SERVING if is_serving else statuses.NOT_SERVING
        async with self._health_lock:
            if is_serving is not self._is_serving:
                self._is_serving = is_serving
                for name in ("", *self._names):
                    await self._health.set(name, status)

    async def stop(self, grace_s: float = 5.0) -> None:
        """Refuses new calls, gives running ones `grace_s`, then ends."""
        await self.set_serving(False)
        await self._server.stop(grace_s)


def _connection_limits(max_connections: int) -> list[tuple[str, int]]:
    if not max_connections:
        return []
    return [
        ("grpc.max_allowed_incoming_connections", max_connections),
        ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_connection_idle_ms", MAX_IDLE_MS),
    ]
