"""Fault F11: a gateway dies."""

from __future__ import annotations

import signal
import time

import grpc

from millrace.testing.servers import free_port
from tests.faults.client import GrpcClient, Reply, check_beginning, check_replies
from tests.faults.fault_stack import FaultStack
from tests.faults.faulty_engine import FaultyEngine
from tests.faults.real_bus import RealBus
from tests.faults.service_process import ServiceProcess
from tests.integration.gateway import queued_request

STEP_S = 0.01
MAX_LEN = 2048
GRACE_S = 5.0
# The scheduler looks every 0.25 s.
LATENESS_S = 0.75


def _has_begun(reply: Reply) -> bool:
    return len(reply.tokens) > 3


async def test_f11_requests_of_a_killed_gateway_end_and_others_do_not_notice(
    stack_on_nats: FaultStack, bus: RealBus
) -> None:
    stack = stack_on_nats
    engine = FaultyEngine(step_s=STEP_S, max_model_len=MAX_LEN, num_blocks=10 * MAX_LEN // 16)
    await stack.add_engine("w", engine)
    edge = await stack.edge()
    port = free_port()
    killed = await ServiceProcess.gateway(bus.server.url, await stack.tokenizer(), port)
    async with (
        GrpcClient(edge.grpc_address) as client,
        GrpcClient(f"127.0.0.1:{port}") as its_client,
    ):
        # Eight rows are there: some of its requests run, the others wait.
        lost = [its_client.generate(queued_request(n, max_tokens=2000)) for n in range(1, 11)]
        await stack.until(lambda: any(_has_begun(reply) for reply in lost))
        kept = [client.generate(queued_request(n, max_tokens=200)) for n in range(11, 15)]
        await stack.until(lambda: stack.service.scheduler.stats().num_waiting > 0)
        await stack.until(lambda: len(stack.service.ledger) == 14)
        killed.signal(signal.SIGKILL)
        killed_s = time.monotonic()
        for reply in lost:
            await reply.until(lambda reply: reply.is_over)
        await stack.until(lambda: len(stack.service.ledger) <= len(kept))
        took_s = time.monotonic() - killed_s
        await stack.until(lambda: engine.num_taken_rows <= len(kept))
        for reply in kept:
            await reply.until(lambda reply: reply.is_over)
    for reply in lost:
        assert (reply.error, reply.num_terminals) == (grpc.StatusCode.UNAVAILABLE, 1)
        check_beginning(reply, max_model_len=MAX_LEN)
    assert stack.aborted("gateway_gone") == len(lost)
    assert took_s <= GRACE_S + LATENESS_S
    check_replies(kept, max_model_len=MAX_LEN)
