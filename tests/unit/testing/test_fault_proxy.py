"""The fault proxy: what each mode does to a connection that is open, and to the next one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from millrace.testing.fault_proxy import FaultMode, FaultProxy, fault_proxy

WAIT_S = 5.0
SILENCE_S = 0.2


@asynccontextmanager
async def _echo() -> AsyncIterator[int]:
    """A server that sends back what it gets; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        except OSError:
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    async with _echo() as port, fault_proxy(port) as made:
        yield made
    assert made.num_open == 0


class _Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, proxy: FaultProxy) -> _Client:
        return cls(*await asyncio.open_connection("127.0.0.1", proxy.port))

    async def ask(self, data: bytes) -> bytes:
        self.writer.write(data)
        async with asyncio.timeout(WAIT_S):
            return await self.reader.readexactly(len(data))

    async def hears_nothing(self) -> bool:
        try:
            async with asyncio.timeout(SILENCE_S):
                await self.reader.read(1)
        except TimeoutError:
            return True
        return False

    async def rest(self) -> bytes:
        async with asyncio.timeout(WAIT_S):
            return await self.reader.read()

    def close(self) -> None:
        self.writer.transport.abort()


@pytest.fixture
async def client(proxy: FaultProxy) -> AsyncIterator[_Client]:
    made = await _Client.connect(proxy)
    assert await made.ask(b"hello") == b"hello"
    yield made
    made.close()


async def test_bytes_pass_both_ways_and_so_does_the_end(proxy: FaultProxy, client: _Client) -> None:
    payload = bytes(range(256)) * 4096
    assert await client.ask(payload) == payload
    client.writer.write_eof()
    assert await client.rest() == b""


async def test_latency_is_paid_each_way_and_order_kept(proxy: FaultProxy, client: _Client) -> None:
    proxy.set_mode(FaultMode.LATENCY, latency_s=0.1)
    begin_s = time.monotonic()
    assert await client.ask(b"one") == b"one"
    assert time.monotonic() - begin_s >= 0.2
    client.writer.write(b"two")
    assert await client.ask(b"three") == b"twoth"
    proxy.set_mode(FaultMode.PASS)
    async with asyncio.timeout(WAIT_S):
        assert await client.reader.readexactly(3) == b"ree"


async def test_reset_ends_open_connections_and_new_ones(proxy: FaultProxy, client: _Client) -> None:
    proxy.set_mode(FaultMode.RESET)
    with pytest.raises(ConnectionResetError):
        await client.rest()
    second = await _Client.connect(proxy)
    with pytest.raises(ConnectionResetError):
        await second.rest()
    second.close()
    proxy.set_mode(FaultMode.PASS)
    third = await _Client.connect(proxy)
    assert await third.ask(b"again") == b"again"
    third.close()


async def test_black_hole_takes_bytes_and_ends_and_tells_nobody(
    proxy: FaultProxy, client: _Client
) -> None:
    proxy.set_mode(FaultMode.BLACK_HOLE)
    client.writer.write(b"lost")
    assert await client.hears_nothing()
    client.writer.write_eof()
    assert await client.hears_nothing()
    assert proxy.num_swallowed_bytes == len(b"lost")
    # What has lost bytes cannot go on as if nothing were.
    proxy.set_mode(FaultMode.PASS)
    assert await client.hears_nothing()
    second = await _Client.connect(proxy)
    assert await second.ask(b"hello") == b"hello"
    second.close()


async def test_peer_that_vanishes_leaves_later_connections_alone(
    proxy: FaultProxy, client: _Client
) -> None:
    assert proxy.vanish() == 1
    second = await _Client.connect(proxy)
    assert await second.ask(b"hello") == b"hello"
    client.writer.write(b"lost")
    assert await client.hears_nothing()
    second.close()


async def test_stall_holds_bytes_back_until_it_is_over(proxy: FaultProxy, client: _Client) -> None:
    proxy.set_mode(FaultMode.STALL)
    client.writer.write(b"late")
    assert await client.hears_nothing()
    proxy.set_mode(FaultMode.PASS)
    async with asyncio.timeout(WAIT_S):
        assert await client.reader.readexactly(4) == b"late"


async def test_truncated_answer_ends_in_the_middle(proxy: FaultProxy, client: _Client) -> None:
    proxy.set_mode(FaultMode.TRUNCATE, truncate_after=6)
    client.writer.write(b"four")
    async with asyncio.timeout(WAIT_S):
        assert await client.reader.readexactly(4) == b"four"
    client.writer.write(b"more")
    assert await client.rest() == b"mo"


async def test_target_that_is_not_there_ends_the_connection(proxy: FaultProxy) -> None:
    proxy.target_port = 1
    client = await _Client.connect(proxy)
    assert await client.rest() == b""
    client.close()
