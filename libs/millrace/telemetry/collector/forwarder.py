"""Sends export requests on while their destination takes them; drops them while it does not.

Nothing here waits for it: bodies lie in a bounded queue, and after a failure everything is dropped
for a few seconds, until the next body tries again. An idle collector does no work at all.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from .destination import Destination

MAX_QUEUE_BYTES = 8 << 20
REST_S = 3.0
TIMEOUT_S = 5.0
# These mean the body; with any other failure the next one would fare no better.
BODY_STATUSES = frozenset({400, 413, 415, 422})

_logger = logging.getLogger(__name__)


class Forwarder:
    """Forwards to one destination. Use inside a running loop."""

    def __init__(
        self,
        destination: Destination,
        *,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._destination = destination
        self._timeout_s = timeout_s
        self._clock = clock
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._resting_until = 0.0
        self._is_up = False
        self._reason = ""
        self._task: asyncio.Task[None] | None = None
        self.num_forwarded = 0
        self.num_dropped = 0

    @property
    def is_open(self) -> bool:
        """False while it drops everything; may be asked from any thread."""
        if self._clock() < self._resting_until:
            return False
        if self._destination.is_there():
            return True
        self._resting_until = self._clock() + REST_S
        return False

    def offer(self, body: bytes) -> None:
        """Queue one export request; never waits."""
        if not self.is_open or self._queued_bytes + len(body) > MAX_QUEUE_BYTES:
            self.num_dropped += 1
            return
        self._queue.append(body)
        self._queued_bytes += len(body)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain(), name="forwarder")

    async def close(self, grace_s: float = 0.0) -> None:
        """Give the queue up after `grace_s`."""
        if self._task is not None:
            await asyncio.wait([self._task], timeout=grace_s)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._destination.close()

    async def _drain(self) -> None:
        while self._queue:
            body = self._queue.popleft()
            self._queued_bytes -= len(body)
            try:
                async with asyncio.timeout(self._timeout_s):
                    status = await self._destination.post(body)
            except (OSError, ValueError, asyncio.IncompleteReadError) as error:
                self._rest(type(error).__name__)
                return
            if 200 <= status < 300:
                self.num_forwarded += 1
                self._note(is_up=True)
            elif status in BODY_STATUSES:
                self.num_dropped += 1
            else:
                self._rest(f"HTTP {status}")
                return

    def _rest(self, reason: str) -> None:
        self.num_dropped += 1 + len(self._queue)
        self._queue.clear()
        self._queued_bytes = 0
        self._resting_until = self._clock() + REST_S
        self._note(is_up=False, reason=reason)

    def _note(self, *, is_up: bool, reason: str = "") -> None:
        """Logs a change."""
        if (is_up, reason) == (self._is_up, self._reason):
            return
        self._is_up, self._reason = is_up, reason
        if is_up:
            _logger.info("%s takes spans", self._destination.name)
        else:
            level = self._destination.loss_level
            _logger.log(
                level, "%s takes no spans", self._destination.name, extra={"reason": reason}
            )
