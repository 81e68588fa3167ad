"""Fault F6: workers are told to end, one after the other, as in a rolling restart."""

from __future__ import annotations

import asyncio
import signal
import time
from functools import partial

import pytest

from tests.faults.client import GrpcClient, check_replies
from tests.faults.fault_stack import FaultStack
from tests.faults.real_bus import RealBus
from tests.faults.service_process import ServiceProcess
from tests.integration.gateway import queued_request

STEP_S = 0.02
# The worker's own: one second for calls, one for the bus, and a step.
GRACE_S = 5.0


@pytest.mark.slow
async def test_f06_workers_told_to_end_hand_over_and_nobody_notices(
    stack_on_nats: FaultStack, bus: RealBus
) -> None:
    stack = stack_on_nats
    url = bus.server.url
    first, second = await asyncio.gather(
        ServiceProcess.worker(url, "a", STEP_S), ServiceProcess.worker(url, "b", STEP_S)
    )
    await stack.until(lambda: stack.worker_ids() == {"a", "b"})
    edge = await stack.edge()
    async with GrpcClient(edge.grpc_address) as client:
        # More than both have rows for: some wait, some run.
        replies = [client.generate(queued_request(n, max_tokens=150)) for n in range(1, 21)]
        for worker_id, ending in (("a", first), ("b", second)):
            await stack.until(partial(_is_busy, stack, worker_id))
            began_s = time.monotonic()
            ending.signal(signal.SIGTERM)
            replacement = asyncio.create_task(ServiceProcess.worker(url, f"{worker_id}2", STEP_S))
            assert await ending.wait() == 0
            assert time.monotonic() - began_s < GRACE_S
            await replacement
            await stack.until(partial(_has_replaced, stack, worker_id))
            live = stack.service.scheduler._requests.values()
            assert live and not any(request.suspicion.num_faults for request in live)
        for reply in replies:
            await reply.until(lambda reply: reply.is_over, 60.0)
    check_replies(replies)


def _is_busy(stack: FaultStack, worker_id: str) -> bool:
    return bool(stack.members(worker_id))


def _has_replaced(stack: FaultStack, worker_id: str) -> bool:
    worker_ids = stack.worker_ids()
    return worker_id not in worker_ids and f"{worker_id}2" in worker_ids
