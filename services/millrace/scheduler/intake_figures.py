"""How full the intake queue is, as the NATS server tells, for the metrics."""

from __future__ import annotations

import asyncio
import logging

from millrace.bus.base import Bus, IntakeLoad
from millrace.core.errors import Unavailable
from millrace.telemetry.metrics import SchedulerMetrics

_log = logging.getLogger(__name__)

ASK_EVERY_S = 5.0


class IntakeFigures:
    """Asks now and then; while nobody answers, the last figures stand."""

    def __init__(self, bus: Bus, model: str, metrics: SchedulerMetrics) -> None:
        self._bus = bus
        self._model = model
        self._metrics = metrics

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                self._show(await self._bus.intake_load(self._model))
            except Unavailable as error:
                # Whoever needs the queue has told of it.
                _log.debug("the intake queue cannot be looked at: %s", error)
            await asyncio.sleep(ASK_EVERY_S)

    def _show(self, load: IntakeLoad) -> None:
        metrics = self._metrics
        metrics.nats_stream_messages.set(load.num_messages)
        metrics.nats_stream_bytes.set(load.num_bytes)
        metrics.nats_stream_usage.set(load.usage)
        pending = {each.subject_token: float(count) for each, count in load.num_pending.items()}
        metrics.nats_pending.set_all(pending)
