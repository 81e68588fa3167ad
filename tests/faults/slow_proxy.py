"""A TCP proxy that holds back what clients send, by a time that a test may change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

CHUNK_BYTES = 1 << 16


class SlowProxy:
    """To one server; `delay_s` is added to every request on its way there."""

    def __init__(self, port: int) -> None:
        self._target_port = port
        self.port = 0
        self.delay_s = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except ConnectionError:
            writer.close()
            return
        pumps = [
            asyncio.create_task(self._pump(reader, to_writer, is_request=True)),
            asyncio.create_task(self._pump(to_reader, writer, is_request=False)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for end in (writer, to_writer):
                end.close()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_request: bool
    ) -> None:
        with suppress(ConnectionError):
            while chunk := await source.read(CHUNK_BYTES):
                if is_request:
                    await asyncio.sleep(self.delay_s)
                sink.write(chunk)
                await sink.drain()


@asynccontextmanager
async def slow_proxy(port: int) -> AsyncIterator[SlowProxy]:
    """A proxy to a port of this machine."""
    proxy = SlowProxy(port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    async with server:
        yield proxy
