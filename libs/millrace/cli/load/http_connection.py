"""HTTP/1.1 as a load needs it: kept connections, streamed bodies, little CPU per event."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from millrace.core.address import join_host_port
from millrace.core.errors import ConfigError, Unavailable
from millrace.core.url import HttpUrl, basic_authorization

MAX_LINE_BYTES = 1 << 20
READ_BYTES = 1 << 16
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Connection:
    """One open connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class NoReply(Unavailable):
    """The connection ended before the first byte of a reply."""


class Response:
    """Status, headers (lower case) and a body that is read once."""

    def __init__(self, reader: asyncio.StreamReader, status: int, headers: dict[str, str]) -> None:
        self.status = status
        self.headers = headers
        # True once the body is read and the connection can take another request.
        self.is_reusable = False
        self._reader = reader

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises Unavailable where it breaks off."""
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            async for piece in self._chunks():
                yield piece
        elif "content-length" in self.headers:
            num_left = int(self.headers["content-length"])
            while num_left:
                piece = await self._reader.read(min(num_left, READ_BYTES))
                if not piece:
                    raise Unavailable(f"the body ended {num_left} bytes early")
                num_left -= len(piece)
                yield piece
        else:
            while piece := await self._reader.read(READ_BYTES):
                yield piece
            return
        self.is_reusable = self.headers.get("connection", "").lower() != "close"

    async def body(self) -> bytes:
        """The whole body. Raises Unavailable where it breaks off."""
        return b"".join([piece async for piece in self.pieces()])

    async def _chunks(self) -> AsyncIterator[bytes]:
        try:
            while size := int((await self._line()).partition(b";")[0], 16):
                yield (await self._reader.readexactly(size + 2))[:-2]
            while await self._line():
                pass  # trailers
        except (asyncio.IncompleteReadError, ValueError) as exc:
            raise Unavailable("the chunked body broke off") from exc

    async def _line(self) -> bytes:
        return (await self._reader.readuntil(b"\r\n"))[:-2]


class HttpEndpoint:
    """The connections to one server."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        """Raises ConfigError for anything but an http or https address."""
        try:
            place = HttpUrl(url)
        except ValueError as exc:
            raise ConfigError(f"--url {exc}", field="url") from None
        self._host = place.host
        self._port = place.port or PORTS[place.scheme]
        self._tls = ssl.create_default_context() if place.scheme == "https" else None
        self._path = place.path.rstrip("/")
        self._headers = {"host": place.address, **basic_authorization(place), **headers}
        self._idle: list[Connection] = []

    @asynccontextmanager
    async def exchange(self, method: str, path: str, body: bytes = b"") -> AsyncIterator[Response]:
        """Sends a request and gives the response. Raises Unavailable where nobody answers.

        A kept connection that ends before the first byte of the reply is replaced by a new one.
        """
        request = self._head(method, path, len(body)) + body
        kept = self._take_idle()
        connection = kept or await self._open()
        response: Response | None = None
        try:
            try:
                response = await _ask(connection, request)
            except NoReply:
                if kept is None:
                    raise
                # Servers end kept connections as they like, some without a word: asked once more.
                kept.writer.close()
                connection = await self._open()
                response = await _ask(connection, request)
            yield response
        except OSError as exc:
            raise Unavailable(f"the connection broke: {exc}") from exc
        finally:
            if response is not None and response.is_reusable:
                self._idle.append(connection)
            else:
                connection.writer.close()

    def close(self) -> None:
        """Closes the idle connections."""
        while self._idle:
            self._idle.pop().writer.close()

    def _head(self, method: str, path: str, num_bytes: int) -> bytes:
        headers = {**self._headers, "content-length": str(num_bytes)}
        lines = [f"{method} {self._path}{path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.reader.at_eof() and not connection.writer.is_closing():
                return connection
            connection.writer.close()
        return None

    async def _open(self) -> Connection:
        try:
            reader, writer = await asyncio.open_connection(
                self._host, self._port, ssl=self._tls, limit=MAX_LINE_BYTES
            )
        except OSError as exc:
            address = join_host_port(self._host, self._port)
            raise Unavailable(f"nobody answers at {address}") from exc
        return Connection(reader, writer)


async def _ask(connection: Connection, request: bytes) -> Response:
    """Raises NoReply if the connection ends before the first byte comes back."""
    try:
        connection.writer.write(request)
        await connection.writer.drain()
        first = await connection.reader.readexactly(1)
    except asyncio.IncompleteReadError as exc:
        raise NoReply("the connection closed without an answer") from exc
    except OSError as exc:
        raise NoReply(f"the connection broke: {exc}") from exc
    return await _read_response(first, connection.reader)


async def _read_response(first_byte: bytes, reader: asyncio.StreamReader) -> Response:
    try:
        head = first_byte + await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").rstrip().split("\r\n")
        status = int(first.split(" ")[1])
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as exc:
        raise Unavailable("the connection closed within the head of the answer") from exc
    except (IndexError, ValueError) as exc:
        raise Unavailable("the answer is not HTTP") from exc
    pairs = (line.partition(":") for line in lines)
    return Response(reader, status, {name.lower(): value.strip() for name, _, value in pairs})
