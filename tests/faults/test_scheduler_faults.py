"""Faults F8 and F9: the scheduler is killed, and comes back or has a standby."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faults.client import GrpcClient, Reply, check_replies
from tests.faults.cluster import Cluster
from tests.faults.faulty_engine import FaultyEngine
from tests.faults.real_bus import RealBus
from tests.integration.gateway import queued_request

NUM_STREAMS = 32
STEP_S = 0.02
MAX_LEN = 512
# From the last token before to the first one after: 5 s, and the prompts' recomputation.
TAKEOVER_S = 5.0
RECOMPUTE_S = 1.0


@pytest.fixture
async def cluster(bus: RealBus, tmp_path: Path) -> AsyncIterator[Cluster]:
    made = Cluster(bus, tmp_path / "tokenizer")
    await made.start()
    try:
        for worker_id in ("a", "b"):
            engine = FaultyEngine(
                step_s=STEP_S, max_model_len=MAX_LEN, max_num_seqs=16, num_blocks=16 * MAX_LEN // 16
            )
            await made.worker(worker_id, engine)
        yield made
    finally:
        await made.stop()


async def _begin(client: GrpcClient) -> list[Reply]:
    """Every stream has begun; none will be over for a while."""
    replies = [
        client.generate(queued_request(number, max_tokens=300))
        for number in range(1, NUM_STREAMS + 1)
    ]
    for reply in replies:
        await reply.until(lambda reply: len(reply.tokens) > 5)
    return replies


async def _end(replies: list[Reply]) -> float:
    """The longest gap that a client has seen; all have what they must have."""
    for reply in replies:
        await reply.until(lambda reply: reply.is_over, 40.0)
    check_replies(replies, max_model_len=MAX_LEN)
    return max(gap_s for reply in replies for gap_s in reply.gaps_s)


@pytest.mark.slow
async def test_f08_streams_outlive_a_killed_scheduler_that_is_started_again(
    cluster: Cluster,
) -> None:
    killed = await cluster.scheduler()
    edge = await cluster.edge()
    async with GrpcClient(edge.grpc_address) as client:
        replies = await _begin(client)
        killed.signal(signal.SIGKILL)
        await killed.wait()
        successor = await cluster.scheduler()
        assert await _end(replies) <= TAKEOVER_S + RECOMPUTE_S
        again = [client.generate(queued_request(number)) for number in range(50, 54)]
        await _end(again)
    await cluster.check_all(successor)


@pytest.mark.slow
async def test_f09_standby_takes_over_from_a_killed_scheduler_in_five_seconds(
    cluster: Cluster,
) -> None:
    killed = await cluster.scheduler()
    edge = await cluster.edge()
    standby = await cluster.scheduler()
    async with GrpcClient(edge.grpc_address) as client:
        replies = await _begin(client)
        killed.signal(signal.SIGKILL)
        assert await _end(replies) <= TAKEOVER_S + RECOMPUTE_S
    await cluster.check_all(standby)
