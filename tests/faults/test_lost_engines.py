"""Engines that are lost: their workers do not look alive, and no request waits for them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from millrace.bus.nats import connect_bus
from millrace.bus.setup import init_bus
from millrace.core.step import PlanRefused, StepPlan, StepResult
from millrace.scheduler.config import SchedulerConfig
from millrace.testing.servers import start_nats
from tests.faults import broken_worker
from tests.faults.broken_worker import BREAKS
from tests.faults.fault_stack import ROOT, FaultStack
from tests.faults.faulty_engine import FaultyEngine
from tests.faults.oracle import check_tokens
from tests.integration.gateway import MODEL, queued_request

END_S = 15.0
MAX_STALL_S = 5.0


class _RefusingEngine(FaultyEngine):
    """Refuses the fifth plan that it gets."""

    num_plans = 0

    def execute(self, plan: StepPlan) -> StepResult:
        self.num_plans += 1
        if self.num_plans == 5:
            raise PlanRefused(f"plan {plan.plan_id} names row 7, which is free")
        return super().execute(plan)


class _DeadEngine(FaultyEngine):
    """No step works any more once `is_dead` is set."""

    is_dead = False

    def execute(self, plan: StepPlan) -> StepResult:
        if self.is_dead:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return super().execute(plan)


@pytest.fixture
async def bus_stack(
    tmp_path: Path, config: SchedulerConfig, no_task_fails_unheard: None
) -> AsyncIterator[tuple[FaultStack, str]]:
    """The stack over a real NATS server, where worker processes register themselves."""
    with start_nats(tmp_path) as nats:
        await init_bus(nats.url, [MODEL])
        bus = await connect_bus(nats.url, name="test")
        stack = FaultStack(bus, config)
        await stack.start()
        try:
            yield stack, nats.url
            await stack.check_all()
        finally:
            await stack.stop()
            await bus.close()


@asynccontextmanager
async def _worker(nats_url: str, kind: str, worker_id: str = "w") -> AsyncIterator[Process]:
    settings = {"NATS_URL": nats_url, "WORKER_ID": worker_id, "MAX_STALL_S": str(MAX_STALL_S)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.broken_worker", kind),
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
            **{f"MILLRACE_WORKER_{name}": value for name, value in settings.items()},
        },
        stderr=PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _last_words(process: Process) -> str:
    async with asyncio.timeout(END_S):
        _, said = await process.communicate()
    return said.decode().splitlines()[-1]


def _num_workers(stack: FaultStack) -> int:
    return stack.service.scheduler.stats().num_workers


async def test_refused_plan_ends_the_stream_and_its_sequences_are_admitted_anew(
    stack: FaultStack, caplog: pytest.LogCaptureFixture
) -> None:
    node = await stack.add_engine("w", engine := _RefusingEngine(step_s=0.01))
    gateway = await stack.gateway()
    answers = [
        await gateway.send(stack.bus, queued_request(number, max_tokens=20))
        for number in range(1, 4)
    ]
    await gateway.until_over()
    check_tokens(answers)
    assert engine.num_plans > 5
    assert "names row 7, which is free" in caplog.text
    assert node.engine.num_resets == 3, "made, claimed, and claimed again"
    assert node.loop.failure is None


async def test_worker_whose_steps_all_fail_is_not_counted_until_it_generates_again(
    stack: FaultStack,
) -> None:
    await stack.add_engine("w", engine := _DeadEngine())
    await stack.until(lambda: _num_workers(stack) == 1)
    engine.is_dead = True
    stack.service._loop._workers["w"].break_off()
    await stack.until(lambda: "w" not in stack.worker_ids())
    # It is claimed again and again, and never believed.
    for _ in range(60):
        assert _num_workers(stack) == 0
        await asyncio.sleep(0.05)
    gateway = await stack.gateway()
    answer = await gateway.send(stack.bus, queued_request())
    engine.is_dead = False
    await gateway.until_over()
    check_tokens([answer])
    assert _num_workers(stack) == 1


async def test_idle_worker_that_dies_inside_is_found_by_its_canary(
    config: SchedulerConfig, stack: FaultStack
) -> None:
    await stack.add_engine("w", engine := _DeadEngine())
    await stack.until(lambda: _num_workers(stack) == 1)
    engine.is_dead = True
    died_s = time.monotonic()
    await stack.until(lambda: _num_workers(stack) == 0)
    assert time.monotonic() - died_s < config.canary_every_s + 1.5
    engine.is_dead = False
    await stack.until(lambda: _num_workers(stack) == 1)


async def test_worker_frozen_in_its_very_first_step_is_found_in_seconds(
    bus_stack: tuple[FaultStack, str],
) -> None:
    stack, nats_url = bus_stack
    async with _worker(nats_url, broken_worker.STOPPING_FIRST_STEP) as frozen:
        await stack.until(lambda: "w" in stack.worker_ids())
        claimed_s = time.monotonic()
        await stack.until(lambda: "w" not in stack.worker_ids())
        assert time.monotonic() - claimed_s < 4.5
        assert _num_workers(stack) == 0
        gateway = await stack.gateway()
        await stack.add_engine("b", FaultyEngine())
        answer = await gateway.send(stack.bus, queued_request())
        await gateway.until_over()
        check_tokens([answer])
        frozen.send_signal(signal.SIGCONT)
        await stack.until(lambda: _num_workers(stack) == 2)
        await stack.bus.unregister_worker("b")
        frozen.terminate()
        await stack.until(lambda: "w" not in stack.worker_ids())


async def test_engine_thread_that_dies_ends_the_process_with_the_reason(
    bus_stack: tuple[FaultStack, str],
) -> None:
    stack, nats_url = bus_stack
    async with _worker(nats_url, broken_worker.FAILING_RESET) as process:
        await stack.until(lambda: _num_workers(stack) == 1)
        gateway = await stack.gateway()
        answer = await gateway.send(stack.bus, queued_request(prompt=[BREAKS, 1, 2]))
        await gateway.until_over()
        check_tokens([answer])
        stack.service._loop._workers["w"].break_off()
        last = await _last_words(process)
        assert process.returncode == 1
        assert last == "millrace worker: the engine is lost: RuntimeError: the device is lost"
        await stack.until(lambda: "w" not in stack.worker_ids())


async def test_step_that_never_ends_ends_the_process_and_its_request_runs_elsewhere(
    bus_stack: tuple[FaultStack, str],
) -> None:
    stack, nats_url = bus_stack
    async with _worker(nats_url, broken_worker.HANGING_STEP) as process:
        await stack.until(lambda: _num_workers(stack) == 1)
        gateway = await stack.gateway()
        # The second one: the first step of a worker may take longer.
        warm = await gateway.send(stack.bus, queued_request())
        await gateway.until_over()
        answer = await gateway.send(stack.bus, queued_request(2, prompt=[BREAKS, 1, 2]))
        await stack.until(lambda: bool(stack.members("w")))
        await stack.until(lambda: "w" not in stack.worker_ids())
        for _ in range(20):
            assert process.returncode is None, "the scheduler gives it up first"
            assert "w" not in stack.worker_ids(), "it is not taken back before its step has ended"
            await asyncio.sleep(0.05)
        last = await _last_words(process)
        assert process.returncode == 1
        assert last.startswith(f"millrace worker: a step has stood still for {MAX_STALL_S:.0f} s")
        await stack.add_engine("b", FaultyEngine())
        await gateway.until_over()
        check_tokens([warm, answer])
