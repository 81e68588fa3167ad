"""Claims every registered worker of the model, and again after its stream broke."""

from __future__ import annotations

import asyncio
import logging

from millrace.bus.base import Bus
from millrace.core.errors import MillraceError
from millrace.core.membership import WorkerRegistration

from .dispatch import WorkerLink
from .loop import StepLoop

_log = logging.getLogger(__name__)

RETRY_S = 0.5


class Workers:
    """One task per registered worker."""

    def __init__(
        self, bus: Bus, loop: StepLoop, model: str, owner_epoch: int, scheduler_id: str
    ) -> None:
        self._bus = bus
        self._loop = loop
        self._model = model
        self._owner_epoch = owner_epoch
        self._scheduler_id = scheduler_id

    async def run(self) -> None:
        """Until cancelled."""
        tasks: dict[str, tuple[str, asyncio.Task[None]]] = {}
        try:
            async for worker_id, registration in self._bus.workers():
                boot_id = registration.boot_id if registration else ""
                known = tasks.get(worker_id)
                if known is not None and known[0] != boot_id:
                    known[1].cancel()
                    del tasks[worker_id]
                if registration is None or not registration.model.answers_to(self._model):
                    continue
                if worker_id not in tasks:
                    tasks[worker_id] = (boot_id, asyncio.create_task(self._hold(registration)))
        finally:
            for _, task in tasks.values():
                task.cancel()
            await asyncio.gather(*(task for _, task in tasks.values()), return_exceptions=True)

    async def _hold(self, registration: WorkerRegistration) -> None:
        while True:
            try:
                worker = await WorkerLink.open(
                    registration.worker_id,
                    registration.advertise_address,
                    self._owner_epoch,
                    self._scheduler_id,
                )
            except MillraceError as error:
                _log.warning("worker %s: %s", registration.worker_id, error)
            else:
                try:
                    await self._loop.drive(worker)
                finally:
                    await worker.close()
            await asyncio.sleep(RETRY_S)
