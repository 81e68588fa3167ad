"""A client of the HTTP edge that sends any bytes in any segments, and splits what comes back."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import h11
from starlette.types import ASGIApp

from millrace.gateway.http.connection_limits import DEFAULT_LIMITS, ConnectionLimits
from millrace.gateway.http.server import HttpServer

Address = tuple[str, int]
WAIT_S = 20.0
# How many byte sequences this process has sent.
num_sent: Counter[str] = Counter()


@asynccontextmanager
async def served(app: ASGIApp, limits: ConnectionLimits = DEFAULT_LIMITS) -> AsyncIterator[Address]:
    """The real server in front of `app`."""
    server = HttpServer(app, "127.0.0.1", 0, limits)
    host, _, port = (await server.start()).rpartition(":")
    try:
        yield host, int(port)
    finally:
        await server.stop(0)


class RawClient:
    """One connection. The server is in the same loop, so a segment is read before the next one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    @asynccontextmanager
    async def connect(cls, address: Address) -> AsyncIterator[RawClient]:
        reader, writer = await asyncio.open_connection(*address)
        try:
            async with asyncio.timeout(WAIT_S):
                yield cls(reader, writer)
        finally:
            writer.close()

    async def send(self, *segments: bytes) -> None:
        for segment in segments:
            self.writer.write(segment)
            for _ in range(3):
                await asyncio.sleep(0)

    def end(self) -> None:
        """Ends this side of the connection; the other one may still be read."""
        self.writer.write_eof()

    async def rest(self) -> bytes:
        """All that comes until the server ends its side."""
        return await self.reader.read()

    async def until(self, mark: bytes) -> bytes:
        """What comes up to and with `mark`."""
        return await self.reader.readuntil(mark)


async def exchange(
    address: Address, sent: bytes, cuts: Sequence[int] = (), *, has_end: bool = True
) -> bytes:
    """All that comes back for `sent`, which arrives in segments that begin at `cuts`.

    `has_end`: the client ends its side then.
    """
    num_sent["byte sequences"] += 1
    async with RawClient.connect(address) as client:
        reading = asyncio.create_task(client.rest())
        starts, ends = (0, *cuts), (*cuts, len(sent))
        segments = [sent[start:end] for start, end in zip(starts, ends, strict=True)]
        try:
            await client.send(*segments)
            await client.writer.drain()
            if has_end:
                client.end()
        except OSError:
            pass  # refused meanwhile
        return await reading


@dataclass(frozen=True)
class Reply:
    """One of the replies on a connection."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error


def replies_in(received: bytes, methods: Sequence[str] = ()) -> list[Reply]:
    """Splits what came back as a client does; `methods`: of the requests, if not all are GET."""
    found: list[Reply] = []
    while received:
        method = methods[len(found)] if len(found) < len(methods) else "GET"
        reply, received = _first_reply(received, "HEAD" if method == "HEAD" else "GET")
        found.append(reply)
    return found


def _first_reply(received: bytes, method: str) -> tuple[Reply, bytes]:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(received)
    # Only a reply without a length ends with the connection.
    is_at_end = False
    head, body = None, b""
    while not isinstance(event := client.next_event(), h11.EndOfMessage):
        if isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif event is h11.NEED_DATA:
            assert not is_at_end, f"unfinished: {received!r}"
            is_at_end = True
            client.receive_data(b"")
    assert head is not None
    headers = {name.decode(): value.decode() for name, value in head.headers}
    return Reply(head.status_code, headers, body), bytes(client.trailing_data[0])


async def one(address: Address, sent: bytes) -> Reply:
    """The reply to the only request in `sent`."""
    (reply,) = replies_in(await exchange(address, sent))
    return reply
