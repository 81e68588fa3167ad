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
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


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
        # When the write began that is under way; 0 between writes.
        self._writing_since_s = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        writer = asyncio.create_task(self._write(send))
        gone = asyncio.create_task(_disconnected(receive))
        attendant = asyncio.create_task(self._attend(send))
        try:
            await asyncio.wait((writer, gone, attendant), return_when=asyncio.FIRST_COMPLETED)
        finally:
            has_stalled = _has_returned(attendant)
            self._abandon(CancelReason.SLOW_CLIENT if has_stalled else CancelReason.CLIENT)
            for task in (writer, gone, attendant):
                task.cancel()
            ended = await asyncio.gather(writer, attendant, gone, return_exceptions=True)
        if has_stalled:
            _log.info("a client took nothing for %g s; cut", self._write_timeout_s)
            cut_connection(scope)
            return
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
        async for chunk in self._chunks:
            await self._send_chunk(send, chunk)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_chunk(self, send: Send, chunk: bytes) -> None:
        self._writing_since_s = time.monotonic()
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._last_write_s, self._writing_since_s = self._writing_since_s, 0.0

    async def _attend(self, send: Send) -> None:
        """Pings while idle; returns when the client has not taken a write in time.

        One task for the whole reply: a time-out around each write would cost more than the write.
        """
        while True:
            now_s = time.monotonic()
            if self._writing_since_s:
                left_s = self._writing_since_s + self._write_timeout_s - now_s
                if left_s <= 0:
                    return
            else:
                left_s = self._last_write_s + self._ping_interval_s - now_s
                if left_s <= 0:
                    if not await self._ping(send):
                        return
                    continue
                # A write may begin meanwhile: it is to be seen before its time is over.
                left_s = min(left_s, self._write_timeout_s)
            await asyncio.sleep(left_s)

    async def _ping(self, send: Send) -> bool:
        """False where the client has not taken it in time."""
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await send({"type": "http.response.body", "body": PING, "more_body": True})
        except TimeoutError:
            return False
        self._last_write_s = time.monotonic()
        return True


def _has_returned(task: asyncio.Task[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None


def cut_connection(scope: Scope) -> None:
    """Closes the connection at once, where the server can: else it waits for the client to read."""
    cut = scope.get("extensions", {}).get(CUT_EXTENSION)
    if cut is not None:
        cut()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
