"""Faults F15, F17, F22, F23 and F26: the intake queue is away, full, poisoned, asked twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from millrace.scheduler.config import SchedulerConfig
from millrace.testing.servers import LocalServer, start_nats
from tests.faults.bus_stack import BusStack, Reply, bus_stack, until

STEP_S = 0.02
OUTAGE_S = 5.0


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[LocalServer]:
    with start_nats(tmp_path) as server:
        yield server


def _retry_after_s(error: grpc.aio.AioRpcError | None) -> float:
    assert error is not None
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    info = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return float(info.retry_delay.ToMilliseconds()) / 1000
    return 0.0


async def _running(stack: BusStack, count: int, max_tokens: int = 150) -> list[Reply]:
    """Streams that have begun."""
    (edge,) = stack.edges
    replies = [edge.send(f"prompt {number}", max_tokens=max_tokens) for number in range(count)]
    await until(lambda: all(len(reply.token_ids) > 3 for reply in replies))
    return replies


@pytest.mark.slow
async def test_f15_killed_nats_interrupts_no_stream_and_loses_no_accepted_request(
    nats: LocalServer, config: SchedulerConfig
) -> None:
    async with bus_stack(nats.url, config, step_s=STEP_S) as stack:
        edge = await stack.add_edge()
        # More than the eight rows: the others are accepted and wait, in the scheduler.
        running = await _running(stack, 8, max_tokens=240)
        waiting = [edge.send(f"later {number}") for number in range(12)]
        await until(lambda: len(edge.bus.requests) == 20)
        await until(lambda: len(stack.service.ledger) == 20)
        nats.kill()
        killed_s = time.monotonic()
        progress = [len(reply.token_ids) for reply in running]
        await until(lambda: not edge.bus.is_connected)

        refused = edge.send("refused")
        await refused.done(5.0)
        assert refused.code is grpc.StatusCode.UNAVAILABLE
        assert _retry_after_s(refused.error) > 0
        response = await edge.complete()
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert time.monotonic() - killed_s < OUTAGE_S, "refusals take too long"
        await asyncio.sleep(killed_s + OUTAGE_S - time.monotonic())
        assert not stack._running.done(), "the scheduler ends where its bus is away"
        for reply, before in zip(running, progress, strict=True):
            assert len(reply.token_ids) > before + 10 or reply.is_finished

        nats.start()
        for reply in (*running, *waiting):
            edge.check(await reply.done())
        async with asyncio.timeout(15):
            while not (await edge.health.readiness()).is_ready:
                await asyncio.sleep(0.05)
        edge.check(await edge.send("after").done())
