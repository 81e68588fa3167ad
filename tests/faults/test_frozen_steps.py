"""Slow steps and steps that hang, with a watchdog made quick."""

from __future__ import annotations

import pytest

from millrace.scheduler.watchdog import WatchLimits
from millrace.worker import servicer
from tests.faults.fault_stack import FaultStack
from tests.faults.faulty_engine import SLOW, STUCK, FaultyEngine
from tests.faults.oracle import check_tokens
from tests.integration.gateway import queued_request

SLOW_S = 4.0


@pytest.fixture
def watch_limits(monkeypatch: pytest.MonkeyPatch) -> WatchLimits:
    """The ratio of a 20 s step to 3 s, in a fraction of the time."""
    monkeypatch.setattr(servicer, "PROGRESS_EVERY_S", 0.1)
    return WatchLimits(check_every_s=0.05, silence_s=0.6, standstill_s=0.6)


async def _warm_up(stack: FaultStack) -> None:
    gateway = await stack.gateway("warm-up")
    await gateway.send(stack.bus, queued_request(900, max_tokens=3, gateway_id="warm-up"))
    await gateway.until_over()


async def test_f03_slow_but_healthy_step_moves_nothing(stack: FaultStack) -> None:
    node = await stack.add_engine("w", engine := FaultyEngine(slow_s=SLOW_S))
    await _warm_up(stack)
    gateway = await stack.gateway()
    answer = await gateway.send(stack.bus, queued_request(prompt=[SLOW, 1, 2]))
    await gateway.until_over()
    check_tokens([answer])
    assert engine.num_slow_steps == 1
    assert node.engine.num_resets == 1


async def test_f03_step_that_hangs_loses_its_sequences_to_another_worker(stack: FaultStack) -> None:
    hanging = await stack.add_engine("a", FaultyEngine(slow_s=SLOW_S))
    await _warm_up(stack)
    gateway = await stack.gateway()
    answer = await gateway.send(stack.bus, queued_request(prompt=[STUCK, 1, 2]))
    await stack.until(lambda: bool(stack.members("a")))
    await stack.add_engine("b", FaultyEngine())
    await gateway.until(lambda: answer.is_over)
    assert hanging.loop.is_stepping, "it hangs still"
    check_tokens([answer])
    await stack.until(lambda: not hanging.loop.is_stepping)
