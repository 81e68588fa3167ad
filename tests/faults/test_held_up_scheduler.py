"""A scheduler that stands still for less than two steps: the lease keeps its worker busy."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise

import pytest

from millrace.bus.memory import MemoryBus
from millrace.core.step import StepResult
from millrace.scheduler.config import SchedulerConfig
from millrace.scheduler.outcome import StepOutcome
from tests.faults.fault_stack import FaultStack
from tests.faults.oracle import check_tokens
from tests.integration.gateway import queued_request

STEP_S = 0.06
STOP_STEPS = 1.8
# Late in a step: what is left of it and the plan behind it are less than the stop.
PHASE_STEPS = 0.8
NUM_STOPS = 10
STEPS_BETWEEN = 6


class _Steps:
    """When the worker ended each step, by its own clock."""

    def __init__(self, stack: FaultStack, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ended_s: list[float] = []
        self.heard = asyncio.Event()
        self._apply = stack.service.scheduler.apply
        monkeypatch.setattr(stack.service.scheduler, "apply", self._note)

    async def another(self, count: int) -> None:
        """Until so many more results are in."""
        for _ in range(count):
            self.heard.clear()
            async with asyncio.timeout(10.0):
                await self.heard.wait()

    def longest_after(self, since_s: float) -> float:
        """The longest time between two tokens around a stop that began then."""
        until_s = since_s + (STOP_STEPS + 3) * STEP_S
        near = [end for end in self.ended_s if since_s - 1.5 * STEP_S < end < until_s]
        return max(later - earlier for earlier, later in pairwise(near))

    def _note(self, worker_id: str, result: StepResult, now_ns: int) -> StepOutcome:
        if result.tokens:
            self.ended_s.append(result.started_unix_ns / 1e9)
        self.heard.set()
        return self._apply(worker_id, result, now_ns)


@pytest.fixture
async def leased(
    request: pytest.FixtureRequest, no_task_fails_unheard: None, config: SchedulerConfig
) -> AsyncIterator[FaultStack]:
    stack = FaultStack(MemoryBus(), replace(config, lease_steps=request.param))
    await stack.start()
    try:
        yield stack
        await stack.check_all()
    finally:
        await stack.stop()


async def _longest_inter_token_s(stack: FaultStack, steps: _Steps) -> list[float]:
    """Around each of ten stops of this process, the scheduler's; the worker has one of its own."""
    await stack.add_process("w", step_s=STEP_S)
    gateway = await stack.gateway()
    answer = await gateway.send(stack.bus, queued_request(max_tokens=120))
    stops_s: list[float] = []
    for _ in range(NUM_STOPS):
        await steps.another(STEPS_BETWEEN)
        await asyncio.sleep(PHASE_STEPS * STEP_S)
        stops_s.append(time.time())
        time.sleep(STOP_STEPS * STEP_S)  # noqa: ASYNC251
    await gateway.until_over()
    check_tokens([answer])
    return [steps.longest_after(stop_s) for stop_s in stops_s]


@pytest.mark.parametrize("leased", [2], indirect=True)
async def test_stop_of_less_than_two_steps_leaves_no_gap_between_tokens(
    leased: FaultStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest_s = await _longest_inter_token_s(leased, _Steps(leased, monkeypatch))
    print(f"lease of 2: longest between two tokens {_in_steps(longest_s)}")
    assert statistics.median(longest_s) <= 1.2 * STEP_S


@pytest.mark.parametrize("leased", [0], indirect=True)
async def test_without_a_lease_the_same_stop_leaves_a_gap(
    leased: FaultStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest_s = await _longest_inter_token_s(leased, _Steps(leased, monkeypatch))
    print(f"no lease: longest between two tokens {_in_steps(longest_s)}")
    assert statistics.median(longest_s) >= 1.4 * STEP_S


def _in_steps(times_s: list[float]) -> str:
    steps = sorted(time_s / STEP_S for time_s in times_s)
    median = statistics.median(steps)
    return f"median {median:.2f} steps, least {steps[0]:.2f}, most {steps[-1]:.2f}"
