"""Keeps the worker's registration alive and tells its load."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from millrace.bus.base import Bus
from millrace.core.errors import MillraceError
from millrace.core.membership import WorkerLoad, WorkerRegistration

_log = logging.getLogger(__name__)


async def announce(
    bus: Bus,
    registration: WorkerRegistration,
    load: Callable[[], WorkerLoad],
    heartbeat_s: float,
) -> None:
    """Until cancelled. The entry outlives a lost beat or two; a bus that is away is tried again."""
    while True:
        try:
            await bus.register_worker(registration)
            await bus.publish_load(load())
        except MillraceError as error:
            _log.warning("cannot register on the bus, trying again: %s", error)
        await asyncio.sleep(heartbeat_s)
