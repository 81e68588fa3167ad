"""One connection to a NATS server that never comes back by itself, and ends without its peer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import nats.errors
from nats.aio.client import Client

_log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 2
RETRY_CONNECT_S = 0.2
END_TIMEOUT_S = 2.0
# Room for a few of the largest messages: beyond it a publish waits for the socket.
MAX_PENDING_BYTES = 32 << 20
FLUSH_TIMEOUT_S = 2.0
# The link asks much more often; the client's own pings would only end it twice.
PING_INTERVAL_S = 60


class NatsClient(Client):
    """The library's client without its reconnection.

    That one waits for `transport.wait_closed()` without a limit, 15 minutes where the peer has
    vanished without a word (nats.py issue 671). Here a lost connection stays lost: `on_lost` is
    called with the reason, and whoever owns the client makes a new one.
    """

    def __init__(self, on_lost: Callable[[str], None]) -> None:
        super().__init__()
        self._on_lost = on_lost
        self._failure: Exception | None = None

    async def open(self, servers: Sequence[str], name: str, credentials: Mapping[str, Any]) -> None:
        """Connects to one of them, or raises `OSError` or the library's error and is ended.

        `credentials` are user and password, or a token, for all of them.
        """
        try:
            # The library tries a server that refuses again and again.
            async with asyncio.timeout((CONNECT_TIMEOUT_S + 1) * len(servers)):
                await self.connect(
                    list(servers),
                    name=name,
                    connect_timeout=CONNECT_TIMEOUT_S,
                    allow_reconnect=False,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=RETRY_CONNECT_S,  # type: ignore[arg-type]
                    ping_interval=PING_INTERVAL_S,
                    pending_size=MAX_PENDING_BYTES,
                    flush_timeout=FLUSH_TIMEOUT_S,
                    inbox_prefix=f"_INBOX_{name}".encode(),
                    error_cb=self._note_error,
                    closed_cb=self._tell_closed,
                    **credentials,
                )
        except TimeoutError as exc:
            await self.end()
            if self._failure is None:
                raise
            # Why the last try failed says more than that the time was over.
            if isinstance(self._failure, (OSError, nats.errors.Error)):
                raise self._failure from None
            raise nats.errors.Error(f"{type(self._failure).__name__}: {self._failure}") from exc
        except BaseException:
            await self.end()
            raise

    async def answers(self, timeout_s: float) -> bool:
        """Whether a PING gets its PONG in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.rtt(timeout=timeout_s)  # type: ignore[arg-type]
        except (OSError, RuntimeError, TimeoutError, nats.errors.Error):
            # RuntimeError: uvloop, the transport is gone.
            return False
        return True

    async def end(self) -> None:
        """Frees the socket and every task; what has not been sent is lost. Safe to repeat."""
        self._on_lost = _unheard
        self._pending, self._pending_data_size = [], 0
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            # Not close(): that waits for the peer to take in what is in the buffers.
            writer.transport.abort()
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                await self.close()
        except (OSError, RuntimeError, TimeoutError, nats.errors.Error) as exc:
            _log.info("nats: closed without a server: %s", repr(exc))
        for future in list(self._resp_map.values()):
            # The library lets who waits for an answer wait until his time-out.
            if not future.done():
                future.set_exception(nats.errors.ConnectionClosedError())
        tasks = (self._reading_task, self._ping_interval_task, self._flusher_task)
        running = [task for task in tasks if task is not None and not task.done()]
        if running:
            # Where the server ended it, the reader is the one that cleans up.
            _, stuck = await asyncio.wait(running, timeout=END_TIMEOUT_S)
            for task in stuck:
                task.cancel()

    async def _process_op_err(self, e: Exception) -> None:
        self._on_lost(f"{type(e).__name__}: {e}")
        await super()._process_op_err(e)

    async def _tell_closed(self) -> None:
        self._on_lost(f"closed: {self.last_error}")

    async def _note_error(self, exc: Exception) -> None:
        self._failure = exc
        # Before there is a connection whoever wants it hears of every failure.
        level = logging.WARNING if self.is_connected else logging.DEBUG
        _log.log(level, "nats: %s: %s", type(exc).__name__, exc)


def _unheard(reason: str) -> None:
    """After the end nobody waits for news."""
