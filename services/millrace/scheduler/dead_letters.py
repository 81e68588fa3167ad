"""Tells of the requests that were given up: the log, a metric and the bus."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from millrace.bus.base import Bus
from millrace.core.dead_letter import DeadLetter
from millrace.core.errors import MillraceError
from millrace.telemetry.metrics import SchedulerMetrics

_log = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 2.0
MAX_PUBLISHING = 1024
_IN_LOG_ONLY = "a dead letter could not be published; it is in the log only"


class DeadLetters:
    """The step loop never waits for it; a bus that is away costs the record there, not the log."""

    def __init__(self, bus: Bus, metrics: SchedulerMetrics) -> None:
        self._bus = bus
        self._metrics = metrics
        self._publishing: set[asyncio.Task[None]] = set()

    def record(self, letters: Iterable[DeadLetter]) -> None:
        """Writes each down."""
        for letter in letters:
            _tell(letter)
            self._metrics.dlq.inc()
            if len(self._publishing) >= MAX_PUBLISHING:
                _log.warning(_IN_LOG_ONLY, extra={"request_id": letter.request_id})
                continue
            task = asyncio.create_task(self._publish(letter))
            self._publishing.add(task)
            task.add_done_callback(self._publishing.discard)

    async def close(self) -> None:
        """Waits a moment for what is on its way."""
        if self._publishing:
            await asyncio.wait(self._publishing, timeout=CLOSE_TIMEOUT_S)

    async def _publish(self, letter: DeadLetter) -> None:
        try:
            await self._bus.publish_dead_letter(letter)
        except MillraceError as error:
            told = {"request_id": letter.request_id}
            _log.warning("%s: %s", _IN_LOG_ONLY, error, extra=told)


def _tell(letter: DeadLetter) -> None:
    if letter.payload_hash:
        _log.error(
            "dead letter: a message that cannot be read (%s)",
            letter.cause,
            extra={
                "request_id": letter.request_id,
                "subject": letter.subject,
                "bytes": letter.num_payload_bytes,
                "blake2b": letter.payload_hash.hex(),
                "deliveries": letter.num_attempts,
            },
        )
    else:
        _log.error(
            "dead letter: a request that was given up (%s)",
            letter.cause,
            extra={
                "request_id": letter.request_id,
                "model": letter.model,
                "prompt_tokens": letter.num_prompt_tokens,
                "blake2b": letter.prompt_hash.hex(),
                "faults": letter.num_attempts,
            },
        )
