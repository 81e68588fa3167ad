"""uvicorn inside the gateway's own event loop, without signals, access log or lifespan."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from millrace.core.address import join_host_port, listening_address
from millrace.core.errors import ConfigError

from .connection import connection_class
from .connection_limits import DEFAULT_LIMITS, ConnectionLimits

KEEP_ALIVE_S = 75
# What the kernel keeps for a client that does not read; by itself it would be megabytes, and
# thousands of tokens would be made for nobody.
SEND_BUFFER_BYTES = 128 << 10


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the service."""
        yield


class HttpServer:
    """Serves an ASGI app on one address."""

    def __init__(
        self, app: ASGIApp, host: str, port: int, limits: ConnectionLimits = DEFAULT_LIMITS
    ) -> None:
        self._host = host
        self._port = port
        self._server = _Server(
            uvicorn.Config(
                app,
                http=connection_class(limits),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Binds, serves, and returns `host:port`. Raises `ConfigError` where the port is taken."""
        listener = _bind(self._host, self._port)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            if self._task.done():
                await self._task
                raise ConfigError(f"HTTP did not start on {self._host}:{self._port}")
            await asyncio.sleep(0.005)
        return join_host_port(self._host, listener.getsockname()[1])

    async def stop(self, grace_s: float = 5.0) -> None:
        """Takes no new connections, gives running replies `grace_s`, then ends."""
        if self._task is None:
            return
        self._server.config.timeout_graceful_shutdown = max(0, round(grace_s))
        self._server.should_exit = True
        await self._task
        # uvicorn leaves open what outlives the grace.
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()


def _bind(host: str, port: int) -> socket.socket:
    try:
        return _listener(*listening_address(host, port))
    except OSError as exc:
        raise ConfigError(
            f"HTTP cannot listen on {join_host_port(host, port)} ({exc.strerror}); "
            "stop what listens there or set --http-port",
            field="http_port",
        ) from exc


def _listener(family: socket.AddressFamily, address: Any) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
