"""A small HTTP/1.1 server on asyncio, for metrics pages and the span collector.

Standard library only: an ASGI stack would double the memory and start time of services that are
idle nearly always. Keep-alive, bodies by Content-Length or chunked, and limits on everything.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus

MAX_HEAD_BYTES = 32 << 10
MAX_CONNECTIONS = 128
IDLE_S = 120.0
READ_S = 30.0


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request; header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """One response."""

    status: int
    body: bytes = b""
    content_type: str = "text/plain; charset=utf-8"


class BadHttp(Exception):
    """The peer did not speak HTTP as this server reads it; `status` is the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


Handler = Callable[[HttpRequest], Awaitable[HttpResponse]]


class HttpServer:
    """Serves `handler`; `handler` must not raise."""

    def __init__(self, handler: Handler, *, max_body_bytes: int = 1 << 20) -> None:
        self._handler = handler
        self._max_body_bytes = max_body_bytes
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen; port 0 takes a free one. Raises OSError where the address is taken."""
        self._server = await asyncio.start_server(self._accept, host, port, limit=MAX_HEAD_BYTES)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and end every connection."""
        if self._server is None:
            return
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._connections) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.CancelledError):
            # The peer left or fell silent, or the server is closing: nobody is there to answer.
            writer.transport.abort()
        finally:
            self._connections.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        keep_alive = True
        while keep_alive:
            try:
                request = await self._read(reader, writer)
            except BadHttp as error:
                answer = HttpResponse(error.status, f"{error}\n".encode())
                await _write(writer, answer, keep_alive=False, with_body=True)
                return
            if request is None:
                return
            keep_alive = request.headers.get("connection", "").lower() != "close"
            answer = await self._handler(request)
            with_body = request.method != "HEAD"
            await _write(writer, answer, keep_alive=keep_alive, with_body=with_body)

    async def _read(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> HttpRequest | None:
        """The next request; None where the peer closed between two."""
        try:
            async with asyncio.timeout(IDLE_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            return None
        except asyncio.LimitOverrunError:
            raise BadHttp(431, f"the head is over {MAX_HEAD_BYTES} bytes") from None
        method, path, headers = _parse_head(head)
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        async with asyncio.timeout(READ_S):
            body = await self._read_body(reader, headers)
        return HttpRequest(method, path, headers, body)

    async def _read_body(self, reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return await self._read_chunks(reader)
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()):
            raise BadHttp(400, "Content-Length is not a number")
        self._check_size(int(length))
        return await reader.readexactly(int(length))

    async def _read_chunks(self, reader: asyncio.StreamReader) -> bytes:
        body = bytearray()
        while True:
            with _bad_chunk():
                line = await reader.readuntil(b"\r\n")
                size = int(line.split(b";")[0].strip(), 16)
                if size < 0:
                    raise ValueError(size)
            self._check_size(len(body) + size)
            body += await reader.readexactly(size)
            if size == 0:
                break
            await reader.readexactly(2)
        with _bad_chunk():
            while await reader.readuntil(b"\r\n") != b"\r\n":
                continue
        return bytes(body)

    def _check_size(self, size: int) -> None:
        if size > self._max_body_bytes:
            raise BadHttp(413, f"the body has {size} bytes; the limit is {self._max_body_bytes}")


@contextlib.contextmanager
def _bad_chunk() -> Iterator[None]:
    try:
        yield
    except (ValueError, asyncio.LimitOverrunError):
        raise BadHttp(400, "the chunked body is malformed") from None


def _parse_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise BadHttp(400, "the request line is malformed")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise BadHttp(400, "a header is malformed")
        headers[name.strip().lower()] = value.strip()
    return parts[0], parts[1], headers


async def _write(
    writer: asyncio.StreamWriter, response: HttpResponse, *, keep_alive: bool, with_body: bool
) -> None:
    head = (
        f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}\r\n"
        f"Content-Type: {response.content_type}\r\n"
        f"Content-Length: {len(response.body)}\r\n"
        f"Connection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n"
    )
    writer.write(head.encode("latin-1") + (response.body if with_body else b""))
    async with asyncio.timeout(READ_S):
        await writer.drain()
