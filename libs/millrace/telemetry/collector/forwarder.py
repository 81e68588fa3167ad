"""Sends export requests on to a tracing UI while one is up; drops them while it is not.

Nothing here waits for the UI: bodies lie in a bounded queue, and after a failure everything is
dropped for a few seconds, until the next body tries again. An idle collector does no work at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from urllib.parse import urlsplit

MAX_QUEUE_BYTES = 8 << 20
REST_S = 3.0
TIMEOUT_S = 5.0

_logger = logging.getLogger(__name__)


class Forwarder:
    """Forwards to `url` + /v1/traces; an empty url forwards nothing. Use inside a running loop."""

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ValueError for a URL that is not http://host[:port]."""
        parts = urlsplit(url)
        if url and (parts.scheme != "http" or not parts.hostname):
            raise ValueError(f"{url!r} is not of the form http://host:port")
        self._host = parts.hostname or ""
        self._port = parts.port or 80
        self._path = parts.path.rstrip("/") + "/v1/traces"
        self._clock = clock
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._resting_until = 0.0
        self._is_up = False
        self._task: asyncio.Task[None] | None = None
        self.num_forwarded = 0
        self.num_dropped = 0

    @property
    def is_open(self) -> bool:
        """False while it drops everything; may be asked from any thread."""
        return bool(self._host) and self._clock() >= self._resting_until

    def offer(self, body: bytes) -> None:
        """Queue one export request; never waits."""
        if not self.is_open or self._queued_bytes + len(body) > MAX_QUEUE_BYTES:
            self.num_dropped += 1
            return
        self._queue.append(body)
        self._queued_bytes += len(body)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain(), name="forwarder")

    async def close(self) -> None:
        """Give the queue up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _drain(self) -> None:
        while self._queue:
            body = self._queue.popleft()
            self._queued_bytes -= len(body)
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    status = await self._post(body)
            except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError) as error:
                self._rest(error)
                return
            if status < 300:
                self.num_forwarded += 1
                self._note(is_up=True)
            else:
                self.num_dropped += 1

    def _rest(self, error: Exception) -> None:
        self.num_dropped += 1 + len(self._queue)
        self._queue.clear()
        self._queued_bytes = 0
        self._resting_until = self._clock() + REST_S
        self._note(is_up=False, reason=type(error).__name__)

    def _note(self, *, is_up: bool, reason: str = "") -> None:
        if is_up == self._is_up:
            return
        self._is_up = is_up
        extra = {"address": f"{self._host}:{self._port}"} | ({"reason": reason} if reason else {})
        _logger.info("the tracing UI is %s", "up" if is_up else "gone", extra=extra)

    async def _post(self, body: bytes) -> int:
        """One request on a connection of its own; the status. Raises OSError, ValueError."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            head = (
                f"POST {self._path} HTTP/1.1\r\n"
                f"Host: {self._host}:{self._port}\r\n"
                "Content-Type: application/x-protobuf\r\n"
                f"Content-Length: {len(body)}\r\n"
                "Connection: close\r\n\r\n"
            )
            writer.write(head.encode("latin-1") + body)
            await writer.drain()
            status_line = await reader.readuntil(b"\r\n")
            return int(status_line.split(b" ", 2)[1])
        except (IndexError, asyncio.LimitOverrunError):
            raise ValueError("the answer is not HTTP") from None
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
