"""Faults F12 to F14: clients that leave in the middle, while they wait, or hardly read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from millrace.scheduler.config import SchedulerConfig
from tests.faults.client import GrpcClient, HttpStream, Reply, check_beginning, check_replies
from tests.faults.fault_stack import FaultStack
from tests.faults.faulty_engine import FaultyEngine
from tests.faults.loop_clock import LoopClock
from tests.integration.gateway import queued_request

STEP_S = 0.02
# Whichever is longer.
LIMIT_S, LIMIT_STEPS = 0.5, 3


def _has_begun(reply: Reply) -> bool:
    return len(reply.tokens) > 3


async def _until_only(stack: FaultStack, engine: FaultyEngine, reply: Reply) -> float:
    """Seconds until one request has the worker to itself."""

    def is_alone() -> bool:
        is_last = stack.members("w") == [reply.request_id]
        return is_last and engine.num_taken_rows == 1

    async with LoopClock.running() as clock:
        await stack.until(is_alone)
    return clock.now_s


async def test_f12_client_that_cancels_mid_stream_frees_row_and_blocks_at_once(
    stack: FaultStack,
) -> None:
    await stack.add_engine("w", engine := FaultyEngine(step_s=STEP_S))
    edge = await stack.edge()
    async with GrpcClient(edge.grpc_address) as client:
        mate = client.generate(queued_request(1, max_tokens=60))
        leaver = client.generate(queued_request(2, max_tokens=200))
        await leaver.until(_has_begun)
        await mate.until(_has_begun)
        client.cancel(leaver)
        assert await _until_only(stack, engine, mate) <= max(LIMIT_S, LIMIT_STEPS * STEP_S)
        await mate.until(lambda reply: reply.is_over)
    check_replies([mate])
    check_beginning(leaver)
    assert (edge.cancelled("client"), stack.aborted("client")) == (1, 1)


async def test_f12_client_that_disconnects_mid_stream_frees_row_and_blocks_at_once(
    stack: FaultStack,
) -> None:
    await stack.add_engine("w", engine := FaultyEngine(step_s=STEP_S))
    edge = await stack.edge()
    async with GrpcClient(edge.grpc_address) as client:
        mate = client.generate(queued_request(1, max_tokens=60))
        leaver = await HttpStream.open(edge.http_address, queued_request(2, max_tokens=200))
        await leaver.events(4)
        await mate.until(_has_begun)
        leaver.leave()
        assert await _until_only(stack, engine, mate) <= max(LIMIT_S, LIMIT_STEPS * STEP_S)
        await mate.until(lambda reply: reply.is_over)
    check_replies([mate])
    assert (edge.cancelled("client"), stack.aborted("client")) == (1, 1)


async def test_f12_client_that_leaves_before_a_whole_answer_frees_row_and_blocks_at_once(
    stack: FaultStack,
) -> None:
    await stack.add_engine("w", engine := FaultyEngine(step_s=STEP_S))
    edge = await stack.edge()
    async with GrpcClient(edge.grpc_address) as client:
        mate = client.generate(queued_request(1, max_tokens=60))
        asked = queued_request(2, max_tokens=200)
        leaver = await HttpStream.open(edge.http_address, asked, is_streamed=False)
        await stack.until(lambda: engine.was_admitted(asked.prompt_token_ids))
        await mate.until(_has_begun)
        leaver.leave()
        assert await _until_only(stack, engine, mate) <= max(LIMIT_S, LIMIT_STEPS * STEP_S)
        await mate.until(lambda reply: reply.is_over)
    check_replies([mate])
    assert (edge.cancelled("client"), stack.aborted("client")) == (1, 1)


class TestWithOneRow:
    """One request runs, one waits in the scheduler, and the others lie in the intake queue."""

    @pytest.fixture
    def config(self, config: SchedulerConfig) -> SchedulerConfig:
        return replace(config, max_num_waiting=1)

    async def test_f13_request_cancelled_while_it_waits_never_runs(self, stack: FaultStack) -> None:
        node = await stack.add_engine("w", engine := FaultyEngine(max_num_seqs=1))
        edge = await stack.edge()
        async with GrpcClient(edge.grpc_address) as client:
            first = client.generate(queued_request(1))
            await stack.until(lambda: bool(stack.members("w")))
            node.engine.gate.clear()
            waiting = client.generate(queued_request(2))
            await stack.until(lambda: stack.service.scheduler.stats().num_waiting == 1)
            queued = [client.generate(queued_request(number)) for number in (3, 4, 5)]
            for reply in (waiting, *queued):
                await reply.until(lambda reply: bool(reply.request_id))
            assert len(stack.service.ledger) == 2
            for leaver in (waiting, queued[0], queued[2]):
                client.cancel(leaver)
            await edge.until(lambda: edge.num_in_flight == 2)
            node.engine.gate.set()
            for stayer in (first, queued[1]):
                await stayer.until(lambda reply: reply.is_over)
            await stack.check_empty()
        check_replies([first, queued[1]])
        for leaver in (waiting, queued[0], queued[2]):
            assert not leaver.tokens
            assert not engine.was_admitted(leaver.asked.prompt_token_ids)
        assert edge.cancelled("client") == 3
        # Some of them as room was made for them, before they were cancelled.
        assert stack.aborted("client") + stack.aborted("gone") == 3
