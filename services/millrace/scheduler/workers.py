"""Claims every registered worker of the model, and again after its stream broke."""

from __future__ import annotations

import asyncio
import logging
import time

from millrace.bus.base import Bus
from millrace.core.errors import MillraceError
from millrace.core.membership import WorkerRegistration

from .dispatch import WorkerLink
from .loop import StepLoop
from .watchdog import WatchLimits

_log = logging.getLogger(__name__)

RETRY_S = 0.5
MAX_RETRY_S = 5.0
# A worker that was driven for so long was not broken from the start.
STEADY_S = 10.0


class Workers:
    """One task per registered worker.

    A registration says where a worker is, its stream whether it works: one that has lost its
    entry, to an outage of the bus say, is driven for as long as its stream lives.
    """

    def __init__(
        self,
        bus: Bus,
        loop: StepLoop,
        model: str,
        owner_epoch: int,
        scheduler_id: str,
        limits: WatchLimits | None = None,
    ) -> None:
        self._bus = bus
        self._loop = loop
        self._model = model
        self._owner_epoch = owner_epoch
        self._scheduler_id = scheduler_id
        self._limits = limits
        self._registrations: dict[str, WorkerRegistration] = {}
        self._tasks: dict[str, tuple[str, asyncio.Task[None]]] = {}

    async def run(self) -> None:
        """Until cancelled. A defect in the loop of one worker ends all of them and is raised."""
        async with asyncio.TaskGroup() as group:
            async for worker_id, registration in self._bus.workers():
                if registration is None or not registration.model.answers_to(self._model):
                    self._registrations.pop(worker_id, None)
                    continue
                self._registrations[worker_id] = registration
                boot_id, task = self._tasks.get(worker_id, ("", None))
                if task is not None and boot_id != registration.boot_id:
                    # It has been started anew: the old stream is dead.
                    task.cancel()
                    await asyncio.wait([task])
                    del self._tasks[worker_id]
                if worker_id not in self._tasks:
                    task = group.create_task(self._hold(worker_id))
                    self._tasks[worker_id] = (registration.boot_id, task)

    async def _hold(self, worker_id: str) -> None:
        delay_s = RETRY_S
        while (registration := self._registrations.get(worker_id)) is not None:
            began_s = time.monotonic()
            try:
                await self._drive(registration)
            except MillraceError as error:
                _log.warning("cannot take a worker: %s", error, extra={"worker_id": worker_id})
            if time.monotonic() - began_s > STEADY_S:
                delay_s = RETRY_S
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, MAX_RETRY_S)
        self._tasks.pop(worker_id, None)

    async def _drive(self, registration: WorkerRegistration) -> None:
        worker = await WorkerLink.open(
            registration, self._owner_epoch, self._scheduler_id, self._limits
        )
        try:
            await self._loop.drive(worker)
        finally:
            await worker.close()
