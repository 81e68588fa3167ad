"""Faults F1 to F5, F7 and F27: workers die, freeze, fail, run out of memory or are not there."""

from __future__ import annotations

import asyncio
import signal
import time
from functools import partial

from millrace.bus.memory import MemoryBus
from tests.faults.fault_stack import FaultStack
from tests.faults.faulty_engine import ENDS_THE_PROCESS, RAISES, SLOW, FaultyEngine
from tests.faults.oracle import check_tokens
from tests.integration.gateway import Answer, ScriptedGateway, queued_request

STEP_S = 0.01


async def _send(
    stack: FaultStack, gateway: ScriptedGateway, count: int, max_tokens: int = 60
) -> list[Answer]:
    return [
        await gateway.send(stack.bus, queued_request(number, max_tokens=max_tokens))
        for number in range(1, count + 1)
    ]


def _poisoned(first_id: int, max_tokens: int = 20):
    return queued_request(1000 + first_id, prompt=[first_id, 5, 6, 7], max_tokens=max_tokens)


def _dead_letters(stack: FaultStack):
    assert isinstance(stack.bus, MemoryBus)
    return stack.bus.dead_letters


async def test_f01_worker_killed_in_decode_all_streams_go_on_with_the_same_tokens(
    stack: FaultStack,
) -> None:
    killed = await stack.add_process("a", step_s=STEP_S)
    await stack.add_process("b", step_s=STEP_S)
    gateway = await stack.gateway()
    answers = await _send(stack, gateway, 12)
    await gateway.until(lambda: all(len(answer.tokens.get(0, ())) > 3 for answer in answers))
    assert len(stack.members("a")) > 1
    killed.signal(signal.SIGKILL)
    await gateway.until_over()
    check_tokens(answers)
    assert not _dead_letters(stack)


async def test_f02_worker_killed_in_prefill_its_request_runs_elsewhere(stack: FaultStack) -> None:
    killed = await stack.add_process("a", slow_s=30.0)
    gateway = await stack.gateway()
    answer = await gateway.send(stack.bus, _poisoned(SLOW))
    await stack.until(lambda: bool(stack.members("a")))
    killed.signal(signal.SIGKILL)
    await stack.add_process("b")
    await gateway.until_over()
    check_tokens([answer])


async def test_f03_stopped_worker_loses_its_sequences_and_is_taken_back_empty(
    stack: FaultStack,
) -> None:
    stopped = await stack.add_process("a", step_s=STEP_S)
    await stack.add_process("b", step_s=STEP_S)
    gateway = await stack.gateway()
    answers = await _send(stack, gateway, 12)
    await gateway.until(lambda: all(len(answer.tokens.get(0, ())) > 3 for answer in answers))
    assert len(stack.members("a")) > 1
    stopped.signal(signal.SIGSTOP)
    stopped_s = time.monotonic()
    await stack.until(lambda: "a" not in stack.worker_ids())
    assert time.monotonic() - stopped_s < 4.5
    await gateway.until_over()
    stopped.signal(signal.SIGCONT)
    await stack.until(lambda: "a" in stack.worker_ids())
    again = await gateway.send(stack.bus, queued_request(50))
    await gateway.until_over()
    check_tokens([*answers, again])


async def test_f04_request_whose_steps_raise_ends_and_its_batch_mates_do_not(
    stack: FaultStack,
) -> None:
    node = await stack.add_engine("w", engine := FaultyEngine(step_s=STEP_S))
    gateway = await stack.gateway()
    mates = await _send(stack, gateway, 5)
    await gateway.until(lambda: all(answer.tokens.get(0) for answer in mates))
    guilty = await gateway.send(stack.bus, _poisoned(RAISES))
    await gateway.until_over()

    assert guilty.failed is not None
    assert guilty.failed.reason == "INTERNAL"
    assert "the last one alone: RuntimeError: the forward pass failed" in guilty.failed.message
    check_tokens(mates)
    # Three times, with the plan that was on its way behind each.
    assert 3 <= engine.num_failed_steps <= 6
    assert node.engine.num_resets == 1, "the worker was never given up"
    (letter,) = _dead_letters(stack)
    assert letter.request_id == guilty.request.request_id


async def test_f04_request_that_ends_its_workers_ends_after_three(stack: FaultStack) -> None:
    for worker_id in ("a", "b", "c", "d"):
        await stack.add_process(worker_id, step_s=STEP_S)
    gateway = await stack.gateway()
    mates = await _send(stack, gateway, 16, max_tokens=30)
    guilty = await gateway.send(stack.bus, _poisoned(ENDS_THE_PROCESS))
    await gateway.until_over()

    dead = [w for w in stack.processes.values() if w.process.returncode == -signal.SIGKILL]
    assert len(dead) == 3
    assert guilty.failed is not None
    assert guilty.failed.reason == "INTERNAL"
    assert guilty.failed.message == "the request ended 3 workers, the last one alone"
    check_tokens(mates)
    (letter,) = _dead_letters(stack)
    assert (letter.request_id, letter.num_attempts) == (guilty.request.request_id, 3)


async def test_f05_step_out_of_memory_is_split_until_it_fits(stack: FaultStack) -> None:
    node = await stack.add_engine("w", engine := FaultyEngine(step_s=STEP_S, most_rows=3))
    gateway = await stack.gateway()
    answers = await _send(stack, gateway, 8)
    await gateway.until_over()
    check_tokens(answers)
    assert engine.num_failed_steps > 0
    assert node.engine.num_resets == 1
    assert not _dead_letters(stack)


async def test_f07_requests_wait_for_a_worker_or_for_their_deadline(stack: FaultStack) -> None:
    killed = await stack.add_process("a", step_s=STEP_S)
    gateway = await stack.gateway()
    answers = await _send(stack, gateway, 6)
    await gateway.until(lambda: any(answer.tokens.get(0) for answer in answers))
    killed.signal(signal.SIGKILL)
    await stack.until(lambda: not stack.worker_ids())
    deadline_unix_ms = time.time_ns() // 1_000_000 + 500
    late = await gateway.send(stack.bus, queued_request(70, deadline_unix_ms=deadline_unix_ms))
    await gateway.until(lambda: late.is_over)
    assert late.failed is not None
    assert late.failed.reason == "DEADLINE_EXCEEDED"
    await stack.add_process("b")
    await gateway.until_over()
    check_tokens(answers)


async def test_f27_exhausted_cache_preempts_and_all_finish_with_the_same_tokens(
    stack: FaultStack,
) -> None:
    await stack.add_worker(num_blocks=20)
    gateway = await stack.gateway()
    answers = await _send(stack, gateway, 8, max_tokens=200)
    await gateway.until_over()
    check_tokens(answers)
    assert (await stack.stats()).num_preemptions > 0


async def test_orderly_end_of_a_worker_counts_against_nobody(stack: FaultStack) -> None:
    gateway = await stack.gateway()
    answer = await gateway.send(stack.bus, queued_request(max_tokens=200))
    for number in range(4):
        num_known = len(answer.tokens.get(0, ()))
        worker = await stack.add_process(f"w{number}", step_s=STEP_S)
        await gateway.until(partial(_has_more_than, answer, num_known))
        await stack.bus.unregister_worker(f"w{number}")
        worker.signal(signal.SIGTERM)
        async with asyncio.timeout(10.0):
            await worker.process.wait()
        await stack.until(lambda: not stack.worker_ids())
        assert not answer.is_over
    await stack.add_process("last")
    await gateway.until_over()
    check_tokens([answer])


def _has_more_than(answer: Answer, num_tokens: int) -> bool:
    return len(answer.tokens.get(0, ())) > num_tokens
