"""Scheduler, workers and a gateway over real streams: the same tokens, whatever breaks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import grpc
import pytest

from millrace.bus.memory import MemoryBus
from millrace.bus.nats import connect_bus
from millrace.bus.setup import init_bus
from millrace.core.errors import Conflict, Overloaded, Unavailable
from millrace.core.membership import SchedulerOwner
from millrace.core.step import PROTOCOL_VERSION, StepPlan
from millrace.core.tokens import FinishReason, TokenDelta, TokenFrame
from millrace.internal.v1 import scheduler_pb2_grpc
from millrace.internal.v1.scheduler_pb2 import AttachRequest, Hello
from millrace.rpc.client import open_channel
from millrace.scheduler import intake, ownership
from millrace.scheduler.config import SchedulerConfig
from millrace.testing.model_worker import expected_output
from millrace.testing.servers import start_nats
from millrace.wire.status import error_from_rpc
from millrace.wire.worker_client import ExecuteStream
from tests.integration.gateway import MODEL, Answer, ScriptedGateway, queued_request
from tests.integration.stack import WAIT_S, Stack


def _assert_expected(answers: Iterable[Answer]) -> None:
    for answer in answers:
        assert answer.failed is None
        for choice in range(answer.request.num_choices):
            output, finish = expected_output(answer.request, choice)
            assert answer.tokens[choice] == output
            assert answer.finishes[choice] is finish


async def _send_many(stack: Stack, gateway: ScriptedGateway, count: int) -> None:
    for number in range(1, count + 1):
        choices = 3 if number % 7 == 0 else 1
        await gateway.send(stack.bus, queued_request(number, num_choices=choices))


async def test_many_requests_get_the_tokens_they_must(stack: Stack) -> None:
    await stack.add_worker(num_blocks=24)
    gateway = await stack.gateway()
    await _send_many(stack, gateway, 40)
    await gateway.until_over()
    _assert_expected(gateway.answers.values())
    assert all(answer.is_scheduled for answer in gateway.answers.values())


async def test_same_stack_over_a_real_bus(config: SchedulerConfig, tmp_path: Path) -> None:
    with start_nats(tmp_path) as server:
        await init_bus(server.url, [MODEL])
        bus = await connect_bus(server.url, name="test")
        stack = Stack(bus, config)
        await stack.start()
        try:
            await stack.add_worker()
            gateway = await stack.gateway()
            await _send_many(stack, gateway, 20)
            await gateway.until_over()
            _assert_expected(gateway.answers.values())
            await stack.check_empty()
        finally:
            await stack.stop()
            await bus.close()


async def test_two_workers_share_the_requests(stack: Stack) -> None:
    for worker_id in ("a", "b"):
        await stack.add_worker(worker_id, max_num_seqs=4)
    gateway = await stack.gateway()
    await _send_many(stack, gateway, 40)
    await gateway.until_over()
    _assert_expected(gateway.answers.values())
    stats = await stack.stats()
    assert all(worker.num_admissions > 4 for worker in stats.workers)


async def test_sequences_of_a_lost_worker_end_on_another_with_the_same_tokens(
    stack: Stack,
) -> None:
    lost = await stack.add_worker("lost")
    gateway = await stack.gateway()
    answers = [await gateway.send(stack.bus, queued_request(n, max_tokens=60)) for n in range(1, 7)]
    await gateway.until(lambda: all(answer.tokens.get(0) for answer in answers))
    lost.engine.gate.clear()
    await stack.bus.unregister_worker("lost")
    await lost.break_off()
    await stack.until(lambda: "lost" not in stack.worker_ids())
    assert not all(answer.is_over for answer in answers)
    await stack.add_worker("other")
    await gateway.until_over()
    _assert_expected(answers)


async def test_worker_is_claimed_again_after_its_stream_broke(stack: Stack) -> None:
    node = await stack.add_worker()
    gateway = await stack.gateway()
    answer = await gateway.send(stack.bus, queued_request(max_tokens=100))
    await gateway.until(lambda: bool(answer.tokens.get(0)))
    assert node.servicer._owner_results is not None
    node.servicer._owner_results.put_nowait(Unavailable("broken off"))
    await gateway.until_over()
    _assert_expected([answer])
    assert node.engine.num_resets >= 2


async def test_worker_without_registration_is_driven_while_its_stream_lives(stack: Stack) -> None:
    await stack.add_worker()
    gateway = await stack.gateway()
    await stack.bus.unregister_worker("w")
    answer = await gateway.send(stack.bus, queued_request())
    await gateway.until_over()
    _assert_expected([answer])


async def test_reattached_gateway_gets_exactly_what_it_lacks(stack: Stack) -> None:
    node = await stack.add_worker()
    gateway = await stack.gateway()
    answers = [
        await gateway.send(stack.bus, queued_request(n, max_tokens=80, top_logprobs=1))
        for n in range(1, 6)
    ]
    await gateway.until(lambda: all(len(a.tokens.get(0, ())) > 2 for a in answers))
    node.engine.gate.clear()
    await gateway.detach()
    num_known = [len(answer.tokens[0]) for answer in answers]
    node.engine.gate.set()
    await stack.until(lambda: all(entry.is_terminal for entry in stack.service.ledger))
    gateway.frames.clear()
    await gateway.attach()
    await gateway.until_over()
    _assert_expected(answers)
    for answer, known in zip(answers, num_known, strict=True):
        (delta,) = [
            delta
            for frame in gateway.frames
            for delta in frame.deltas
            if delta.request_id == answer.request.request_id
        ]
        assert delta.start_index == known
        assert delta.token_ids == answer.tokens[0][known:]
        assert len(answer.logprobs[0]) == len(answer.tokens[0])


async def test_abort_frees_rows_and_blocks(stack: Stack) -> None:
    node = await stack.add_worker()
    gateway = await stack.gateway()
    answer = await gateway.send(stack.bus, queued_request(max_tokens=200))
    await gateway.until(lambda: bool(answer.tokens.get(0)))
    node.engine.gate.clear()
    await gateway.stream.abort(answer.request.request_id, "client")
    await stack.until(lambda: not len(stack.service.ledger))
    node.engine.gate.set()
    await stack.check_empty()
    assert not answer.is_over


async def test_abort_that_overtakes_its_message_ends_the_request_as_it_comes(
    config: SchedulerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "TICK_S", 60.0)
    stack = Stack(MemoryBus(), config)
    await stack.start()
    try:
        await stack.add_worker()
        gateway = await stack.gateway()
        early, later = queued_request(1), queued_request(2)
        await gateway.stream.register(early.request_id)
        await gateway.stream.abort(early.request_id, "client")
        # On the same stream: once it runs, the abort has been heard.
        await gateway.send(stack.bus, later)
        await gateway.until_over()
        await stack.bus.publish_request(early, {})
        await gateway.send(stack.bus, queued_request(3))
        await gateway.until_over()
        await stack.until(lambda: not len(stack.service.ledger))
        (worker,) = (await stack.stats()).workers
        assert worker.num_admissions == 2
        await stack.check_empty()
    finally:
        await stack.stop()


async def test_abort_by_id_over_the_bus_tells_the_gateway(stack: Stack) -> None:
    node = await stack.add_worker()
    gateway = await stack.gateway()
    answer = await gateway.send(stack.bus, queued_request(max_tokens=200))
    await gateway.until(lambda: bool(answer.tokens.get(0)))
    node.engine.gate.clear()
    await stack.bus.publish_abort(answer.request.request_id)
    await gateway.until_over()
    node.engine.gate.set()
    assert answer.failed is not None
    assert answer.failed.reason == "ABORTED"


async def test_newer_owner_takes_the_worker_and_a_lower_epoch_is_refused(stack: Stack) -> None:
    node = await stack.add_worker()
    async with contextlib.AsyncExitStack() as channels:
        streams = []
        for epoch in (2**50, 2**50 + 1):
            channel = open_channel(node.registration.advertise_address)
            channels.push_async_callback(channel.close)
            streams.append(await ExecuteStream.open(channel, epoch, f"owner-{epoch}"))
        older, newer = streams
        with pytest.raises(Conflict, match="took the worker"):
            async with asyncio.timeout(WAIT_S):
                await anext(older.results())
        with pytest.raises(Conflict, match="is lower than"):
            await ExecuteStream.open(channel, 2**50, "late")
        await newer.send(StepPlan(1))
        async with asyncio.timeout(WAIT_S):
            assert (await anext(newer.results())).plan_id == 1
        newer.close()
    await stack.until(lambda: not stack.worker_ids())


async def test_claim_of_an_earlier_start_of_the_worker_is_refused(stack: Stack) -> None:
    node = await stack.add_worker()
    async with open_channel(node.registration.advertise_address) as channel:
        with pytest.raises(Conflict, match="an earlier run of this worker"):
            await ExecuteStream.open(channel, 2**50, "owner", boot_id="of-a-dead-process")
    assert stack.worker_ids()


async def test_requests_of_a_step_that_raised_run_again_with_the_same_tokens(stack: Stack) -> None:
    node = await stack.add_worker()
    gateway = await stack.gateway()
    node.engine.gate.clear()
    first = [await gateway.send(stack.bus, queued_request(n)) for n in (1, 2)]
    await stack.until(lambda: len(stack.service.ledger) == 2)
    node.engine.num_failing_steps = 1
    node.engine.gate.set()
    await gateway.until_over()
    _assert_expected(first)
    assert node.engine.num_failing_steps == 0
    assert stack.worker_ids() == {"w"}


async def test_full_cache_preempts_and_nobody_notices(stack: Stack) -> None:
    await stack.add_worker(num_blocks=10, max_model_len=150)
    gateway = await stack.gateway()
    for number in range(1, 9):
        await gateway.send(stack.bus, queued_request(number, max_tokens=90))
    await gateway.until_over()
    for answer in gateway.answers.values():
        output, finish = expected_output(answer.request, max_model_len=150)
        assert (answer.tokens[0], answer.finishes[0]) == (output, finish)
    assert (await stack.stats()).num_preemptions > 0


async def test_deadline_ends_a_running_request(stack: Stack) -> None:
    node = await stack.add_worker()
    gateway = await stack.gateway()
    node.engine.gate.clear()
    answer = await gateway.send(stack.bus, queued_request(deadline_unix_ms=1))
    await gateway.until_over()
    node.engine.gate.set()
    assert answer.failed is not None
    assert answer.failed.reason == "DEADLINE_EXCEEDED"


async def test_gateway_that_reads_nothing_is_absent_until_it_reads_again(stack: Stack) -> None:
    channel = open_channel(stack.address)
    call: Any = scheduler_pb2_grpc.SchedulerServiceStub(channel).Attach()
    await call.write(AttachRequest(hello=Hello(gateway_id="slow", protocol=PROTOCOL_VERSION)))
    assert (await call.read()).HasField("status")
    links = stack.service.links
    frame = TokenFrame(1, deltas=[TokenDelta("0" * 32, 0, 0, [1_000_000] * 500_000)])
    # As many as the connection takes, then as many as the buffer takes.
    await stack.until(lambda: not links.send("slow", frame))
    assert links.absent_for_s("slow") > 0.0
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        while True:
            await call.read()
    assert isinstance(error_from_rpc(caught.value), Overloaded)
    await channel.close()


async def test_closed_stream_raises_errors_of_ours(stack: Stack) -> None:
    gateway = await stack.gateway()
    await gateway.stream.close()
    with pytest.raises(Unavailable):
        await gateway.stream.done("r")
    async with asyncio.timeout(WAIT_S):
        await gateway._reader
    assert isinstance(gateway.error, Unavailable)


async def test_wrong_first_word_is_refused(stack: Stack) -> None:
    async with open_channel(stack.address) as channel:
        call: Any = scheduler_pb2_grpc.SchedulerServiceStub(channel).Attach()
        await call.write(AttachRequest(hello=Hello(gateway_id="old", protocol=99)))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert isinstance(error_from_rpc(caught.value), Conflict)


async def test_prompt_that_no_worker_can_hold_ends_when_the_first_worker_comes(
    stack: Stack,
) -> None:
    gateway = await stack.gateway()
    answer = await gateway.send(stack.bus, queued_request(prompt=[1] * 300))
    await stack.until(lambda: bool(len(stack.service.ledger)))
    await stack.add_worker()
    await gateway.until_over()
    assert answer.failed is not None
    assert answer.failed.reason == "CONTEXT_LENGTH_EXCEEDED"


async def test_standby_takes_over_with_the_tokens_so_far(config: SchedulerConfig) -> None:
    bus = MemoryBus()
    first, second = Stack(bus, config), Stack(bus, config)
    await first.start()
    node = await first.add_worker()
    gateway = await first.gateway()
    answer = await gateway.send(bus, queued_request(max_tokens=100))
    await gateway.until(lambda: bool(answer.tokens.get(0)))
    node.engine.gate.clear()
    await second.start()
    second.workers, first.workers = first.workers, {}
    await first.stop()
    node.engine.gate.set()
    num_known = len(answer.tokens[0])
    returned = ScriptedGateway(second.address)
    returned.answers = gateway.answers
    await returned.attach()
    second.gateways.append(returned)
    await returned.until_over()
    _assert_expected([answer])
    starts = [delta.start_index for frame in returned.frames for delta in frame.deltas]
    assert starts == list(range(num_known, 100))
    await second.check_empty()
    await second.stop()


async def test_loss_of_the_model_ends_the_service_with_its_reason(
    config: SchedulerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "RENEW_EVERY_S", 0.01)
    bus = MemoryBus()
    stack = Stack(bus, config)
    await stack.start()
    await stack.until(lambda: bool(bus._owners.entries))
    (slug,) = bus._owners.entries
    bus._owners.put(slug, SchedulerOwner("other", 2**50, "b:1", MODEL))
    with pytest.raises(ExceptionGroup) as caught:
        await stack.until(lambda: False)
    assert caught.group_contains(Unavailable, match="another scheduler owns")
    await stack.stop()


async def test_defect_in_the_scheduler_ends_the_service(
    config: SchedulerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = Stack(MemoryBus(), config)
    await stack.start()
    monkeypatch.setattr(stack.service.scheduler, "add_worker", Mock(side_effect=KeyError("row")))
    with pytest.raises(ExceptionGroup) as caught:
        await stack.add_worker()
    assert caught.group_contains(KeyError)
    await stack.stop()


async def test_gateway_that_comes_back_too_late_is_told_that_its_requests_have_ended(
    config: SchedulerConfig,
) -> None:
    stack = Stack(MemoryBus(), replace(config, gateway_grace_s=0.0))
    await stack.start()
    try:
        node = await stack.add_worker()
        gateway = ScriptedGateway(stack.address)
        await gateway.attach()
        answer = await gateway.send(stack.bus, queued_request(max_tokens=200))
        await gateway.until(lambda: bool(answer.tokens.get(0)))
        node.engine.gate.clear()
        await gateway.detach()
        await stack.until(lambda: not len(stack.service.ledger))
        node.engine.gate.set()
        await gateway.attach()
        await gateway.until_over()
        assert answer.failed is not None
        assert answer.failed.reason == Unavailable.reason
        assert not stack.service._intake._given_up
        await gateway.detach()
        await stack.check_empty()
    finally:
        await stack.stop()


async def test_gateway_that_stays_away_loses_its_requests(config: SchedulerConfig) -> None:
    stack = Stack(MemoryBus(), replace(config, gateway_grace_s=0.0))
    await stack.start()
    try:
        node = await stack.add_worker()
        gateway = ScriptedGateway(stack.address)
        await gateway.attach()
        answer = await gateway.send(stack.bus, queued_request(max_tokens=200))
        await gateway.until(lambda: bool(answer.tokens.get(0)))
        node.engine.gate.clear()
        await gateway.detach()
        await stack.until(lambda: not len(stack.service.ledger))
        node.engine.gate.set()
        await stack.check_empty()
        assert answer.finishes.get(0) in (None, FinishReason.ABORT)
    finally:
        await stack.stop()


async def test_word_to_the_scheduler_that_is_cancelled_leaves_the_stream_whole(
    stack: Stack,
) -> None:
    await stack.add_worker()
    gateway = await stack.gateway()
    words = [asyncio.create_task(gateway.stream.register(f"{n:032x}")) for n in range(100, 120)]
    await asyncio.sleep(0)
    for word in words:
        word.cancel()
    await asyncio.gather(*words, return_exceptions=True)
    answer = await gateway.send(stack.bus, queued_request())
    await gateway.until_over()
    _assert_expected([answer])
    assert gateway.error is None
