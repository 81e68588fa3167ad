"""Watching the bus for models and their schedulers, and for requests to end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from millrace.bus.base import Bus
from millrace.core.errors import MillraceError

from .directory import ModelDirectory
from .frames import FrameRouter

_log = logging.getLogger(__name__)

Entry = TypeVar("Entry")

RETRY_S = 1.0


async def watch_members(bus: Bus, directory: ModelDirectory, router: FrameRouter) -> None:
    """Feeds directory and router until cancelled."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_watch(bus.workers, directory.on_worker))
        group.create_task(_watch(bus.owners, lambda _, owner: router.on_owner(owner)))


async def hear_aborts(bus: Bus, abort: Callable[[str], object]) -> None:
    """Calls `abort` with every id that some gateway was told to end, until cancelled."""
    while True:
        try:
            async for request_id in bus.aborts():
                abort(request_id)
        except MillraceError as error:
            _log.warning("cannot listen for aborts, trying again: %s", error)
        await asyncio.sleep(RETRY_S)


async def _watch(
    watch: Callable[[], AsyncIterator[tuple[str, Entry | None]]],
    on_entry: Callable[[str, Entry | None], None],
) -> None:
    while True:
        try:
            async for key, entry in watch():
                on_entry(key, entry)
        except MillraceError as error:
            _log.warning("cannot watch the bus, trying again: %s", error)
        await asyncio.sleep(RETRY_S)
