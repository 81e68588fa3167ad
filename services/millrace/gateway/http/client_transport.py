"""The transport of one connection, whose `close` lets the client read what was said last."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

# How long a client may go on sending after the last reply, in all and without a byte.
MAX_DRAIN_S = 30.0
MAX_SILENCE_S = 3.0


class ClientTransport:
    """Stands in for an asyncio transport.

    A socket that is closed with bytes unread is reset, and the reset may overtake the reply. So
    while the client may be sending, `close` ends our side alone, and what comes is dropped until
    the client ends its own, within bounds (RFC 9112 9.6). `num_drained` says how many bytes are
    worth dropping; 0: it sends nothing.
    """

    def __init__(self, transport: asyncio.Transport, num_drained: Callable[[], int]) -> None:
        self.write = transport.write
        self._transport = transport
        self._num_drained = num_drained
        self._loop = asyncio.get_running_loop()
        self._num_left = 0
        self._end_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        # On the loop's clock: when reading went on after a pause.
        self.resumed_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """True after `close` too, although something may still be read."""
        return self._timer is not None or self._transport.is_closing()

    def resume_reading(self) -> None:
        """As of any transport."""
        self.resumed_s = self._loop.time()
        self._transport.resume_reading()

    def close(self) -> None:
        """As of any transport; a second call ends the wait for the client."""
        self._num_left = 0 if self.is_closing() else self._num_drained()
        if not self._num_left:
            self.forget()
            self._transport.close()
            return
        self._end_s = self._loop.time() + MAX_DRAIN_S
        self._await_end()
        try:
            self._transport.write_eof()
        except OSError:  # reset meanwhile
            self._transport.abort()
        self._transport.resume_reading()

    def drop(self, num_bytes: int) -> None:
        """Counts what came after `close`."""
        if self._timer is None:
            return
        self._num_left -= num_bytes
        self._timer.cancel()
        if self._num_left < 0:
            self.close()
        else:
            self._await_end()

    def forget(self) -> None:
        """The connection is gone; nothing is awaited any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _await_end(self) -> None:
        at_s = min(self._end_s, self._loop.time() + MAX_SILENCE_S)
        self._timer = self._loop.call_at(at_s, self.close)
