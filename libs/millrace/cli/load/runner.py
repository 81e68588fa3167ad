"""Sends a load and collects what its clients see; it ends by count, by time or by a stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from millrace.core.errors import MillraceError

from .ask import Ask
from .outcome import REASON_CUT_SHORT, Load, Outcome

# Clients of a closed loop start this far apart, as they would not all press a key at once.
STAGGER_S = 0.01
REASON_TIMEOUT = "timeout"


class Target(Protocol):
    """What takes the requests."""

    protocol: str

    async def send(self, ask: Ask, outcome: Outcome) -> None:
        """One request to its end; notes what comes in `outcome`. Raises MillraceError."""

    async def close(self) -> None:
        """Closes the connections."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that the whole load and one request may take."""

    duration_s: float = 600.0
    timeout_s: float = 600.0


class LoadRun:
    """One load on one target. `stop` ends it early; what runs then counts as cut short."""

    def __init__(self, target: Target, limits: Limits | None = None) -> None:
        self._target = target
        self._limits = limits or Limits()
        self._stop = asyncio.Event()
        self._outcomes: list[Outcome] = []
        self._was_interrupted = False

    def stop(self) -> None:
        """Ends the load now; safe to repeat."""
        self._was_interrupted = True
        self._stop.set()

    async def closed_loop(self, asks: Sequence[Ask], num_streams: int) -> Load:
        """`num_streams` clients, each with one request after another until all are sent."""
        waiting = list(reversed(asks))

        async def client(number: int) -> None:
            await asyncio.sleep(number * STAGGER_S)
            while waiting:
                await self._send(waiting.pop(), 0.0)

        clients = [client(number) for number in range(min(num_streams, len(asks)))]
        return await self._until_over(asyncio.gather(*clients), num_streams)

    async def open_loop(self, asks: Iterable[Ask]) -> Load:
        """Each request at its own time, whether or not those before it are answered."""

        async def send_all() -> None:
            began_s = time.monotonic()
            async with asyncio.TaskGroup() as sent:
                for ask in asks:
                    planned_s = began_s + ask.at_s
                    await asyncio.sleep(max(0.0, planned_s - time.monotonic()))
                    sent.create_task(self._send(ask, time.monotonic() - planned_s))

        return await self._until_over(asyncio.ensure_future(send_all()), 0)

    async def _until_over(self, work: asyncio.Future[Any], num_streams: int) -> Load:
        started_s, started_cpu_s = time.monotonic(), time.process_time()
        stopped = asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait(
                (work, stopped),
                timeout=self._limits.duration_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
            elapsed_s = time.monotonic() - started_s
            if work.done():
                work.result()
        finally:
            stopped.cancel()
            work.cancel()
            await asyncio.gather(work, stopped, return_exceptions=True)
        cpu_s = time.process_time() - started_cpu_s
        return Load(
            protocol=self._target.protocol,
            num_streams=num_streams,
            elapsed_s=elapsed_s,
            client_cpu_s=cpu_s,
            outcomes=self._outcomes,
            was_interrupted=self._was_interrupted,
        )

    async def _send(self, ask: Ask, late_s: float) -> None:
        outcome = Outcome(started_s=time.monotonic(), late_s=late_s)
        self._outcomes.append(outcome)
        # What a cancellation leaves behind.
        outcome.error = REASON_CUT_SHORT
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                await self._target.send(ask, outcome)
            outcome.error = ""
        except TimeoutError:
            outcome.error = REASON_TIMEOUT
        except MillraceError as exc:
            outcome.error = reason_of(exc)
        finally:
            outcome.ended_s = time.monotonic()


def reason_of(error: MillraceError) -> str:
    """A short, stable name for the count of errors."""
    status, code = error.metadata.get("http_status"), error.metadata.get("code")
    if status is None:
        return error.reason.lower()
    return f"http_{status}_{code}" if code else f"http_{status}"
