"""Fault F14: a client that hardly reads is cut alone, with a clear error, within bounds."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise

import grpc
import pytest

from tests.faults.client import GrpcClient, HttpStream, Reply, check_replies, generate_request
from tests.faults.edge import Edge
from tests.faults.fault_stack import FaultStack
from tests.faults.faulty_engine import FaultyEngine
from tests.integration.gateway import queued_request

STEP_S = 0.004
MAX_LEN = 16_384
MAX_BUFFERED_EVENTS = 64
# Until the kernel's buffers are full, too.
CUT_WITHIN_S = 30.0
NUM_MATES = 4
MATE_TOKENS = 400
# Far more than what the kernel keeps for such a client.
SLOW = queued_request(2, max_tokens=12_000)
RECEIVE_BYTES = 4096


async def _start(stack: FaultStack, **settings: float) -> tuple[FaultyEngine, Edge]:
    engine = FaultyEngine(
        step_s=STEP_S, max_model_len=MAX_LEN, num_blocks=2 * MAX_LEN // 16, max_num_seqs=8
    )
    await stack.add_engine("w", engine)
    return engine, await stack.edge(max_buffered_events=MAX_BUFFERED_EVENTS, **settings)


async def _run_mates(client: GrpcClient, first: int) -> list[Reply]:
    """Streams that are read as they come, to their end."""
    mates = [
        client.generate(queued_request(number, prompt=[number % 90, 1], max_tokens=MATE_TOKENS))
        for number in range(first, first + NUM_MATES)
    ]
    for mate in mates:
        await mate.until(lambda reply: reply.is_over, CUT_WITHIN_S)
    check_replies(mates, max_model_len=MAX_LEN)
    return mates


def _median_gap_s(mates: list[Reply]) -> float:
    return statistics.median(gap_s for mate in mates for gap_s in mate.gaps_s)


def _num_connections(edge: Edge) -> int:
    return len(edge.gateway._http._server.server_state.connections)


def _num_buffered(edge: Edge) -> int:
    sides = edge.gateway._router._sides.values()
    return max((len(live._events) for side in sides for live in side.live.values()), default=0)


@asynccontextmanager
async def _one_byte_per_second(stream: HttpStream) -> AsyncIterator[None]:
    async def sip() -> None:
        while await stream.reader.read(1):  # noqa: ASYNC110
            await asyncio.sleep(1.0)

    sipping = asyncio.create_task(sip())
    try:
        yield
    finally:
        sipping.cancel()
        await asyncio.gather(sipping, return_exceptions=True)


async def test_f14_client_that_reads_a_byte_per_second_is_cut_and_others_do_not_notice(
    stack: FaultStack,
) -> None:
    engine, edge = await _start(stack, write_timeout_s=1.0)
    async with GrpcClient(edge.grpc_address) as client:
        alone = await _run_mates(client, 10)
        slow = await HttpStream.open(edge.http_address, SLOW, receive_bytes=RECEIVE_BYTES)
        async with _one_byte_per_second(slow):
            await stack.until(lambda: engine.was_admitted(SLOW.prompt_token_ids))
            beside = await _run_mates(client, 20)
            most_buffered = 0
            began_s = time.monotonic()
            while not edge.cancelled("slow_client"):
                assert time.monotonic() - began_s < CUT_WITHIN_S
                most_buffered = max(most_buffered, _num_buffered(edge))
                await asyncio.sleep(0.005)
            assert 0 < most_buffered <= MAX_BUFFERED_EVENTS
            await stack.until(lambda: engine.num_taken_rows == 0)
            # The connection goes, although the client has not read what was sent to it.
            await edge.until(lambda: _num_connections(edge) == 0)
        slow.leave()
    assert stack.aborted("slow_client") == 1
    for mate in beside:
        steps = engine.steps_of_seed[mate.asked.sampling.seed]
        assert all(later - earlier == 1 for earlier, later in pairwise(steps))
    assert _median_gap_s(beside) <= 1.25 * _median_gap_s(alone)


async def test_f14_slow_client_over_http_reads_why_it_was_cut(stack: FaultStack) -> None:
    engine, edge = await _start(stack)
    engine.step_s = 0.0
    slow = await HttpStream.open(edge.http_address, SLOW, receive_bytes=RECEIVE_BYTES)
    await edge.until(lambda: edge.cancelled("slow_client") == 1, CUT_WITHIN_S)
    await stack.until(lambda: engine.num_taken_rows == 0)
    *_, error, done = [event async for event in slow.all_events()]
    assert done == "[DONE]"
    assert json.loads(error)["error"]["message"] == (
        f"the client reads too slowly: {MAX_BUFFERED_EVENTS} events wait for it, "
        f"the limit is {MAX_BUFFERED_EVENTS}"
    )
    slow.leave()


async def test_f14_slow_client_over_grpc_reads_why_it_was_cut(stack: FaultStack) -> None:
    engine, edge = await _start(stack)
    engine.step_s = 0.0
    async with GrpcClient(edge.grpc_address, window_bytes=RECEIVE_BYTES) as client:
        call = client.stub.Generate(generate_request(SLOW))
        await edge.until(lambda: edge.cancelled("slow_client") == 1, CUT_WITHIN_S)
        await stack.until(lambda: engine.num_taken_rows == 0)
        reply = Reply(SLOW)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for response in call:
                reply.take(response)
    assert caught.value.code() is grpc.StatusCode.CANCELLED
    assert "the client reads too slowly" in (caught.value.details() or "")
    assert reply.tokens
