"""Fixtures of the fault tests; the leak check of tasks is that of the integration tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from millrace.bus.memory import MemoryBus
from millrace.scheduler.config import SchedulerConfig
from millrace.scheduler.watchdog import WatchLimits
from tests.faults import service_process
from tests.faults.descriptors import Descriptors, warm_up
from tests.faults.fault_stack import FaultStack
from tests.faults.real_bus import RealBus, real_bus
from tests.integration.conftest import config, no_task_fails_unheard

__all__ = ["config", "no_task_fails_unheard"]


@pytest.fixture
def watch_limits() -> WatchLimits | None:
    """The service's own; tests that wait for the watchdog several times make it quicker."""
    return None


@pytest.fixture(autouse=True)
async def no_descriptor_stays_open(no_task_fails_unheard: None) -> AsyncIterator[None]:
    """Fails the test that leaves files, sockets or pipes of this process open."""
    await warm_up()
    before = Descriptors.now()
    yield
    await before.check()


@pytest.fixture
async def bus(no_descriptor_stays_open: None, tmp_path: Path) -> AsyncIterator[RealBus]:
    """A NATS server and a connection to it; its intake queue must be empty at the end."""
    async with real_bus(tmp_path) as made:
        try:
            yield made
            await made.check_empty()
        finally:
            await service_process.end_all()


@pytest.fixture
async def stack_on_nats(bus: RealBus, config: SchedulerConfig) -> AsyncIterator[FaultStack]:
    """As `stack`, on a real bus, so that services in processes of their own can join."""
    made = FaultStack(bus.bus, config)
    await made.start()
    try:
        yield made
        await made.check_all()
    finally:
        await made.stop()


@pytest.fixture
async def stack(
    no_descriptor_stays_open: None, config: SchedulerConfig, watch_limits: WatchLimits | None
) -> AsyncIterator[FaultStack]:
    made = FaultStack(MemoryBus(), config, watch_limits)
    await made.start()
    try:
        yield made
        await made.check_all()
    finally:
        await made.stop()
