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

from . import extensions
from .edge import client_end_of

_log = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
# A comment line alone: with an empty line behind it, some clients see an event without data.
PING = b": ping\n"
# After the client has ended its side; each pause is twice the last one.
FIRST_PROBE_S = 0.01
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
        # Between the head and the end of the reply, where pings may stand.
        self._is_open = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        writer = asyncio.create_task(self._write(send))
        gone = asyncio.create_task(_disconnected(receive))
        attendant = asyncio.create_task(self._attend(send))
        prober = asyncio.create_task(self._probe(send, client_end_of(scope)))
        try:
            await asyncio.wait((writer, gone, attendant), return_when=asyncio.FIRST_COMPLETED)
        finally:
            has_stalled = _has_returned(attendant)
            self._abandon(CancelReason.SLOW_CLIENT if has_stalled else CancelReason.CLIENT)
            tasks = (writer, gone, attendant, prober)
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        if has_stalled:
            _log.info("a client took nothing for %g s; cut", self._write_timeout_s)
            cut_connection(scope)
            return
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(HEADERS)})
        self._is_open = True
        async for chunk in self._chunks:
            await self._send_chunk(send, chunk)
        self._is_open = False
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
                    left_s = self._ping_interval_s
                # A write may begin meanwhile: it is to be seen before its time is over.
                left_s = min(left_s, self._write_timeout_s)
            await asyncio.sleep(left_s)

    async def _probe(self, send: Send, client_end: asyncio.Event | None) -> None:
        """Pings soon after the client has ended its side: only the answer to a write tells whether
        it is gone, and a write after that fails.
        """
        if client_end is None:
            return
        await client_end.wait()
        pause_s = FIRST_PROBE_S
        while pause_s < self._ping_interval_s:
            await self._ping(send)
            await asyncio.sleep(pause_s)
            pause_s *= 2

    async def _ping(self, send: Send) -> bool:
        """False if the client has not taken it in time."""
        if self._is_open:
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
    cut = scope.get("extensions", {}).get(extensions.CUT)
    if cut is not None:
        cut()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
