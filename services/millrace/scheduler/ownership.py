"""One active scheduler per model: a compare-and-set entry with a time to live."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace

from millrace.bus.base import Bus
from millrace.core.errors import MillraceError, Unavailable
from millrace.core.membership import SchedulerOwner

_log = logging.getLogger(__name__)

CLAIM_EVERY_S = 0.5
# The entry lives for 3 s: a standby has the model 3.5 s after the last renewal at the latest.
RENEW_EVERY_S = 1.0
RELEASE_TIMEOUT_S = 1.0


class Ownership:
    """This process's claim on a model."""

    def __init__(self, bus: Bus, scheduler_id: str, advertise_address: str, model: str) -> None:
        self._bus = bus
        self.owner = SchedulerOwner(
            scheduler_id=scheduler_id,
            owner_epoch=0,
            advertise_address=advertise_address,
            model=model,
        )

    async def claim(self) -> int:
        """Waits as a standby until the model is free; the epoch in force."""
        is_standby = False
        while True:
            # A standby may have waited for longer than the one whose model it takes has lived.
            self.owner = replace(self.owner, owner_epoch=time.time_ns() // 1_000_000)
            try:
                epoch = await self._bus.claim_ownership(self.owner)
            except Unavailable as error:
                _log.warning("the model cannot be claimed, trying again: %s", error)
                await self._wait_for_bus()
                if is_standby:
                    # Whoever was active before the outage goes first: its streams have not ended.
                    await asyncio.sleep(RENEW_EVERY_S + CLAIM_EVERY_S)
                continue
            if epoch is not None:
                self.owner = replace(self.owner, owner_epoch=epoch)
                _log.info("active for %s", self.owner.model, extra={"epoch": epoch})
                return epoch
            if not is_standby:
                _log.info("standby for %s, which another scheduler has", self.owner.model)
                is_standby = True
            await asyncio.sleep(CLAIM_EVERY_S)

    async def _wait_for_bus(self) -> None:
        await asyncio.sleep(CLAIM_EVERY_S)
        while not self._bus.is_connected:  # noqa: ASYNC110
            await asyncio.sleep(CLAIM_EVERY_S)

    async def keep(self) -> None:
        """Renews until cancelled. Raises `Unavailable` where another scheduler has taken over."""
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            try:
                epoch = await self._bus.claim_ownership(self.owner)
            except MillraceError as error:
                _log.warning("the claim on the model cannot be renewed: %s", error)
                continue
            if epoch != self.owner.owner_epoch:
                raise Unavailable(f"another scheduler owns {self.owner.model}")

    async def release(self) -> None:
        """Lets a standby take over at once."""
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await self._bus.release_ownership(self.owner)
        except (MillraceError, TimeoutError) as error:
            # The entry has a time to live.
            _log.warning("the claim on the model cannot be given up, it runs out: %s", repr(error))
