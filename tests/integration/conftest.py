"""Fixtures of the tests that join services over loopback gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from millrace.bus.memory import MemoryBus
from millrace.scheduler.config import SchedulerConfig
from tests.integration.gateway import MODEL
from tests.integration.stack import Stack


@pytest.fixture
def config() -> SchedulerConfig:
    return SchedulerConfig(model=MODEL, max_num_waiting=256, step_span_every=4)


@pytest.fixture
async def stack(config: SchedulerConfig) -> AsyncIterator[Stack]:
    """Without workers; at its end nothing may be left of any request."""
    made = Stack(MemoryBus(), config)
    await made.start()
    try:
        yield made
        await made.check_empty()
    finally:
        await made.stop()
