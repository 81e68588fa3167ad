"""Fixtures of the tests that join services over loopback gRPC."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from millrace.bus.memory import MemoryBus
from millrace.scheduler.config import SchedulerConfig
from tests.integration.gateway import MODEL
from tests.integration.stack import Stack


@pytest.fixture
def config() -> SchedulerConfig:
    return SchedulerConfig(model=MODEL, max_num_waiting=256, step_span_every=4)


@pytest.fixture(autouse=True)
async def no_task_fails_unheard() -> AsyncIterator[None]:
    """Fails the test where a task ended with an error that nobody looked at, or still runs."""
    unheard: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: unheard.append(context))
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    mine = {asyncio.current_task(), *before}
    left = [task for task in asyncio.all_tasks() - mine if not _is_grpc(task)]
    gc.collect()
    loop.set_exception_handler(None)
    assert not unheard
    assert not left


def _is_grpc(task: asyncio.Task[Any]) -> bool:
    return "grpc" in repr(task.get_coro())


@pytest.fixture
async def stack(no_task_fails_unheard: None, config: SchedulerConfig) -> AsyncIterator[Stack]:
    """Without workers; at its end nothing may be left of any request."""
    made = Stack(MemoryBus(), config)
    await made.start()
    try:
        yield made
        await made.check_empty()
    finally:
        await made.stop()
