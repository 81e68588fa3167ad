"""The way of results from the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
import threading

from millrace.core.errors import MillraceError
from millrace.core.step import StepProgress, StepResult

# The event loop takes a third of this to send a result.
GIVE_WAY_S = 0.001


class Ready:
    """The engine is empty and the owner's."""


# None: the owner sends no more plans, or the worker ends. An error: it is the owner no longer.
ResultEvent = StepResult | StepProgress | Ready | MillraceError | None
ResultQueue = asyncio.Queue[ResultEvent]


class HandOver:
    """Puts events into a queue of the event loop that runs where this is made.

    A first token is waited for by somebody who sees nothing yet. The engine would begin the next
    step at once, in Python, and so keep the loop from running: for such a result it stands back
    until `sent`, or for `GIVE_WAY_S`.
    """

    def __init__(self, queue: ResultQueue) -> None:
        self._queue = queue
        self._loop = asyncio.get_running_loop()
        self._is_sent = threading.Event()

    def deliver(self, result: StepResult) -> None:
        """From the engine's thread."""
        has_first_token = len(result.tokens) > result.num_decode_rows
        if has_first_token:
            self._is_sent.clear()
        self.put(result)
        if has_first_token:
            self._is_sent.wait(GIVE_WAY_S)

    def put(self, event: ResultEvent) -> None:
        """From any thread; waits for nothing."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    def sent(self) -> None:
        """A result is on its way to the scheduler."""
        self._is_sent.set()
