"""Fault F4 with one worker, which is started again under its name as a supervisor does."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator

import pytest

from millrace.bus.memory import MemoryBus
from tests.faults.fault_stack import FaultStack
from tests.faults.faulty_engine import ENDS_THE_PROCESS
from tests.faults.oracle import check_tokens
from tests.integration.gateway import queued_request

STEP_S = 0.01


class _Restarts:
    """Starts the worker again whenever it was killed."""

    def __init__(self, stack: FaultStack) -> None:
        self.num_deaths = 0
        self._stack = stack

    async def run(self) -> None:
        while True:
            worker = await self._stack.add_process("w", step_s=STEP_S)
            assert await worker.process.wait() == -signal.SIGKILL
            self.num_deaths += 1
            await self._stack.until(lambda: not self._stack.worker_ids())


@pytest.fixture
async def restarts(stack: FaultStack) -> AsyncIterator[_Restarts]:
    made = _Restarts(stack)
    running = asyncio.create_task(made.run())
    await stack.until(lambda: bool(stack.worker_ids()))
    yield made
    # Not in the middle of a start, whose process nobody would end.
    await stack.until(lambda: bool(stack.worker_ids()))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_f4_request_that_ends_its_worker_ends_after_three_and_its_batch_mates_finish(
    stack: FaultStack, restarts: _Restarts
) -> None:
    gateway = await stack.gateway()
    requests = [queued_request(number, max_tokens=30) for number in range(1, 7)]
    mates = [await gateway.send(stack.bus, request) for request in requests]
    await gateway.until(lambda: all(mate.tokens.get(0) for mate in mates))
    guilty = await gateway.send(
        stack.bus, queued_request(1_000, prompt=[ENDS_THE_PROCESS, 5, 6], max_tokens=20)
    )
    await gateway.until(lambda: guilty.is_over)
    await gateway.until_over()

    assert restarts.num_deaths == 3
    assert guilty.failed is not None
    assert guilty.failed.reason == "INTERNAL"
    assert guilty.failed.message == "the request ended 3 workers, the last one alone"
    check_tokens(mates)
    assert isinstance(stack.bus, MemoryBus)
    (letter,) = stack.bus.dead_letters
    assert (letter.request_id, letter.num_attempts) == (guilty.request.request_id, 3)
