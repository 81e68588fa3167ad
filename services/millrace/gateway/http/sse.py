"""Server-sent events: `data: ...` per event, `: ping` while idle, ended with the client.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.types import Receive, Scope, Send

from millrace.core.cancellation import CancelReason

_log = logging.getLogger(__name__)

# In the ASGI scope: ends the connection without a word.
CUT_EXTENSION = "millrace.cut"
DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def compact_json(value: Any) -> str:
    """As whole replies are written: without spaces, text as it is."""
    return _ENCODER.encode(value)


def data_event(value: Any) -> bytes:
    """One event that carries `value` as JSON."""
    return f"data: {compact_json(value)}\n\n".encode()


class EventStream:
    """A reply of events, as ASGI app. Sends what `chunks` yields, each a whole event or several.

    `abandon` is called when it is over, however it ends. A client that does not take one write for
    `write_timeout_s` is cut: what was sent and not taken is dropped with the connection.
    """

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        abandon: Callable[[CancelReason], None],
        *,
        ping_interval_s: float,
        write_timeout_s: float,
    ) -> None:
        self._chunks = chunks
        self._abandon = abandon
        self._ping_interval_s = ping_interval_s
        self._write_timeout_s = write_timeout_s
        self._last_write_s = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        writer = asyncio.create_task(self._write(send))
        gone = asyncio.create_task(_disconnected(receive))
        pinger = asyncio.create_task(self._ping(send))
        try:
            await asyncio.wait((writer, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._abandon(CancelReason.SLOW_CLIENT if _has_stalled(writer) else CancelReason.CLIENT)
            for task in (writer, gone, pinger):
                task.cancel()
            outcome, _, _ = await asyncio.gather(writer, gone, pinger, return_exceptions=True)
        if isinstance(outcome, TimeoutError):
            _log.info("a client took nothing for %g s; cut", self._write_timeout_s)
            cut_connection(scope)
        elif isinstance(outcome, Exception):
            raise outcome

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
        async for chunk in self._chunks:
            async with asyncio.timeout(self._write_timeout_s):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            self._last_write_s = time.monotonic()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _ping(self, send: Send) -> None:
        while True:
            idle_s = time.monotonic() - self._last_write_s
            if idle_s < self._ping_interval_s:
                await asyncio.sleep(self._ping_interval_s - idle_s)
                continue
            await send({"type": "http.response.body", "body": PING, "more_body": True})
            self._last_write_s = time.monotonic()


def cut_connection(scope: Scope) -> None:
    """Closes the connection at once, where the server can: else it waits for the client to read."""
    cut = scope.get("extensions", {}).get(CUT_EXTENSION)
    if cut is not None:
        cut()


def _has_stalled(writer: asyncio.Task[None]) -> bool:
    return writer.done() and not writer.cancelled() and isinstance(writer.exception(), TimeoutError)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
