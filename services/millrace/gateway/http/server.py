"""uvicorn inside the gateway's own event loop, without signals, access log or lifespan.

What is wrong before there is a request (not HTTP, too much head) is refused in the errors' shape.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from millrace.core.errors import ConfigError

from .sse import CUT_EXTENSION

KEEP_ALIVE_S = 75
# Path and headers of one request.
MAX_HEAD_BYTES = 32 << 10
# What the kernel keeps for a client that does not read; by itself it would be megabytes, and
# thousands of tokens would be made for nobody.
SEND_BUFFER_BYTES = 128 << 10
# A reply that the client has not taken for so long is dropped, streamed or not, ended or not.
MAX_STALL_S = 60.0


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the service."""
        yield


class _HeadTooLarge(Exception):
    """Seen by the parser only, which ends the connection then."""


class _Protocol(HttpToolsProtocol):
    """Bounds the head of a request, which the parser would take at any size, and stalls."""

    _stalled: asyncio.TimerHandle | None = None
    _is_in_head = False
    _num_head_bytes = 0
    _num_unparsed_bytes = 0

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True
        self._num_head_bytes = self._num_unparsed_bytes = 0
        extensions: Any = {CUT_EXTENSION: self.transport.abort}
        self.scope["extensions"] = extensions

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(MAX_STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._end_stall()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_stall()
        super().connection_lost(exc)

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        was_in_head = self._is_in_head
        super().data_received(data)
        # A header that never ends is not counted as one.
        if was_in_head and self._is_in_head and not self.transport.is_closing():
            self._num_unparsed_bytes += len(data)
            if self._num_unparsed_bytes > MAX_HEAD_BYTES:
                self._num_head_bytes = self._num_unparsed_bytes
                self.send_400_response("")

    def send_400_response(self, msg: str) -> None:
        if self._num_head_bytes > MAX_HEAD_BYTES:
            status = "431 Request Header Fields Too Large"
            message = f"path and headers have more than {MAX_HEAD_BYTES} bytes, which is the limit"
            code = "request_header_fields_too_large"
        else:
            status, message, code = "400 Bad Request", "this is not HTTP/1.1", "bad_request"
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        body = json.dumps({"error": error}).encode()
        self.transport.write(
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nx-should-retry: false\r\n"
            "connection: close\r\n\r\n".encode()
            + body
        )
        self.transport.close()

    def _end_stall(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _count(self, num_bytes: int) -> None:
        self._num_head_bytes += num_bytes
        if self._num_head_bytes > MAX_HEAD_BYTES:
            raise _HeadTooLarge


class HttpServer:
    """Serves an ASGI app on one address."""

    def __init__(self, app: ASGIApp, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._server = _Server(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
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
        return f"{self._host}:{listener.getsockname()[1]}"

    async def stop(self, grace_s: float = 5.0) -> None:
        """Takes no new connections, gives running replies `grace_s`, then ends."""
        if self._task is None:
            return
        self._server.config.timeout_graceful_shutdown = max(0, round(grace_s))
        self._server.should_exit = True
        await self._task


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    try:
        listener.bind((host, port))
    except OSError as exc:
        listener.close()
        raise ConfigError(
            f"HTTP cannot listen on {host}:{port} ({exc.strerror}); "
            "stop what listens there or set --http-port",
            field="http_port",
        ) from exc
    listener.setblocking(False)
    return listener
