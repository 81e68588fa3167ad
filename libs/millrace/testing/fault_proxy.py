"""A TCP proxy on loopback that a test can make slow, silent or rude while connections are open."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from enum import Enum

CHUNK_BYTES = 65_536
END_TIMEOUT_S = 1.0
LINGER_NOT_AT_ALL = struct.pack("ii", 1, 0)


class FaultMode(Enum):
    """What happens to the bytes, of every connection and of those yet to come."""

    PASS = "pass"
    # Every chunk arrives `latency_s` later, in order.
    LATENCY = "latency"
    # Connections end with RST, new ones at once.
    RESET = "reset"
    # Bytes are read and dropped, and no end is passed on. A connection that has lost some stays so.
    BLACK_HOLE = "black hole"
    # Nothing is read: buffers fill up, as with a peer that has vanished. Goes on where it stopped.
    STALL = "stall"
    # `truncate_after` bytes more of the target's, then the end, in the middle of whatever it was.
    TRUNCATE = "truncate"


class FaultProxy:
    """Forwards to `target_port`; `port` is its own. Made and ended by `fault_proxy`.

    `vanish` black-holes the connections of this moment only; the next ones are as `mode` says.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        self.mode = FaultMode.PASS
        self.latency_s = 0.0
        self.truncate_after = 0
        self.num_accepted = 0
        self.num_swallowed_bytes = 0
        self.changed = asyncio.Event()
        self._connections: dict[_Connection, asyncio.Task[None]] = {}
        self._server: asyncio.Server | None = None

    @property
    def num_open(self) -> int:
        """Connections that have not ended."""
        return len(self._connections)

    def set_mode(self, mode: FaultMode, *, latency_s: float = 0.0, truncate_after: int = 0) -> None:
        """From now on, for open connections too."""
        self.mode, self.latency_s, self.truncate_after = mode, latency_s, truncate_after
        # Whoever waits for a change has its own event; the next wait gets a new one.
        self.changed.set()
        self.changed = asyncio.Event()
        if mode is FaultMode.RESET:
            self.reset()

    def vanish(self) -> int:
        """The peers of all open connections are gone without a word; how many these were."""
        for connection in self._connections:
            connection.is_black = True
        return len(self._connections)

    def reset(self) -> None:
        """Ends all open connections with RST."""
        for connection, task in self._connections.items():
            connection.reset()
            task.cancel()

    async def start(self) -> None:
        """Listens on a free port."""
        listener = socket.socket()
        # Else a kernel takes in several megabytes before anybody notices a stall.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CHUNK_BYTES)
        listener.bind(("127.0.0.1", 0))
        self._server = await asyncio.start_server(self._accept, sock=listener)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Ends everything."""
        if self._server is not None:
            self._server.close()
        tasks = list(self._connections.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.num_accepted += 1
        connection = _Connection(self, writer)
        self._connections[connection] = task
        try:
            if self.mode is FaultMode.RESET:
                connection.reset()
                return
            with suppress(asyncio.CancelledError, OSError):
                await connection.run(reader)
        finally:
            del self._connections[connection]
            connection.close()


class _Connection:
    """A client's connection and its counterpart at the target."""

    def __init__(self, proxy: FaultProxy, client: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._writers = [client]
        self.is_black = False

    async def run(self, reader: asyncio.StreamReader) -> None:
        """Until both ways have ended, or one of them with an error."""
        target_reader, target = await asyncio.open_connection("127.0.0.1", self._proxy.target_port)
        self._writers.append(target)
        ways = [
            asyncio.create_task(self._forward(reader, target, is_answer=False)),
            asyncio.create_task(self._forward(target_reader, self._writers[0], is_answer=True)),
        ]
        try:
            await asyncio.gather(*ways)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    def reset(self) -> None:
        """Ends both sides with RST."""
        for writer in self._writers:
            raw: socket.socket = writer.get_extra_info("socket")
            with suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT_AT_ALL)
        self.close()

    def close(self) -> None:
        """Frees both sockets without waiting for anybody."""
        for writer in self._writers:
            writer.transport.abort()

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        proxy, num_left, data = self._proxy, -1, b"?"
        while data:
            await self._while_stalled()
            data = await reader.read(CHUNK_BYTES)
            await self._while_stalled()
            if self.is_black or proxy.mode is FaultMode.BLACK_HOLE:
                await self._swallow(data)
                continue
            if proxy.mode is FaultMode.LATENCY:
                await asyncio.sleep(proxy.latency_s)
            if is_answer and proxy.mode is FaultMode.TRUNCATE:
                num_left = proxy.truncate_after if num_left < 0 else num_left
                data = data[:num_left]
                num_left -= len(data)
            writer.write(data)
            await writer.drain()
            if not num_left:
                await self._end(writer)
        writer.write_eof()

    async def _while_stalled(self) -> None:
        while self._proxy.mode is FaultMode.STALL and not self.is_black:
            await self._proxy.changed.wait()

    async def _swallow(self, data: bytes) -> None:
        self.is_black = True
        self._proxy.num_swallowed_bytes += len(data)
        if not data:
            # Nobody hears of the end either.
            await asyncio.Event().wait()

    async def _end(self, writer: asyncio.StreamWriter) -> None:
        writer.close()
        async with asyncio.timeout(END_TIMEOUT_S):
            await writer.wait_closed()
        raise ConnectionAbortedError("cut off")


@asynccontextmanager
async def fault_proxy(target_port: int) -> AsyncIterator[FaultProxy]:
    """A running proxy in front of a loopback port."""
    proxy = FaultProxy(target_port)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()
