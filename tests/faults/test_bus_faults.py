"""Faults F15, F16, F17, F22 and F23: the intake queue is away, full, poisoned, or asked twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from nats import connect

from millrace.bus.subjects import (
    DEAD_LETTER_STREAM,
    REQUEST_STREAM,
    request_consumer,
    request_subject,
)
from millrace.core.model import model_slug
from millrace.core.request import Priority
from millrace.internal.v1 import bus_pb2
from millrace.scheduler.config import SchedulerConfig
from millrace.testing.fault_proxy import FaultMode, fault_proxy
from millrace.testing.servers import LocalServer, start_nats
from millrace.wire.dead_letters import dead_letter_from_proto
from tests.faults.bus_stack import BusStack, Reply, bus_stack, until
from tests.integration.gateway import MODEL

STEP_S = 0.02
OUTAGE_S = 5.0
REBUILT_WITHIN_S = 15.0


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
    # Eight rows, four held beside them: the last eight are on the queue only.
    small = replace(config, max_num_waiting=6)
    async with bus_stack(nats.url, small, step_s=STEP_S) as stack:
        edge = await stack.add_edge()
        running = await _running(stack, 8, max_tokens=240)
        waiting = [edge.send(f"later {number}") for number in range(12)]
        await until(lambda: all(reply.request_id for reply in waiting))
        assert len(stack.service.ledger) == 12
        assert await stack.num_messages() == 20
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
        await edge.until_ready()
        edge.check(await edge.send("after").done())


@pytest.mark.slow
async def test_f16_nats_that_vanishes_interrupts_no_stream_and_is_taken_up_again(
    nats: LocalServer, config: SchedulerConfig
) -> None:
    async with fault_proxy(nats.port) as proxy:
        url = f"nats://127.0.0.1:{proxy.port}"
        async with bus_stack(url, config, step_s=STEP_S) as stack:
            edge = await stack.add_edge()
            running = await _running(stack, 8, max_tokens=240)
            proxy.set_mode(FaultMode.STALL)
            stalled_s = time.monotonic()
            in_flight = await edge.send("in flight").done(8.0)
            assert in_flight.code is grpc.StatusCode.UNAVAILABLE
            await until(lambda: not edge.bus.is_connected)
            response = await edge.complete()
            assert response.status_code == 503
            assert int(response.headers["retry-after"]) > 0
            proxy.set_mode(FaultMode.PASS)
            await edge.until_ready()
            edge.check(await edge.send("after").done())
            assert time.monotonic() - stalled_s < REBUILT_WITHIN_S
            for reply in running:
                edge.check(await reply.done())


@pytest.mark.parametrize(
    "limit", [{"max_msgs": 3}, {"max_msgs_per_subject": 3}, {"max_bytes": 1500}], ids=str
)
async def test_f17_full_queue_refuses_at_once_and_keeps_what_it_has(
    nats: LocalServer, config: SchedulerConfig, limit: dict[str, int]
) -> None:
    async with bus_stack(nats.url, config) as stack:
        edge = await stack.add_edge()
        await stack.shrink_queue(**limit)
        assert stack.engine is not None
        stack.engine.gate.clear()
        accepted: list[Reply] = []
        while (reply := await _answered(edge.send("fill"))).error is None:
            accepted.append(reply)
            assert len(accepted) < 10, "the limit does not hold"
        begin_s = time.monotonic()
        response = await edge.complete()
        assert time.monotonic() - begin_s < 1.0
        assert (response.status_code, response.json()["error"]["code"]) == (429, "overloaded")
        assert int(response.headers["retry-after"]) > 0
        assert reply.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert _retry_after_s(reply.error) > 0
        assert len(accepted) >= 2
        assert await stack.num_messages() == len(accepted)

        stack.engine.gate.set()
        for each in accepted:
            edge.check(await each.done())
        await stack.until_drained()
        edge.check(await edge.send("room again").done())
        stats = await stack.stats()
        assert stats.workers[0].num_admissions == len(accepted) + 1, "a refused one ran"


async def _answered(reply: Reply) -> Reply:
    """Started, or refused."""
    await until(lambda: bool(reply.request_id) or reply.error is not None)
    return reply


UNREADABLE = {
    "no protobuf": b"\xff\xffthe secret prompt",
    "empty": b"",
    "from the future": bus_pb2.QueuedRequest(
        schema_version=99, request_id="f" * 32, tenant="the secret prompt"
    ).SerializeToString(),
}


@pytest.mark.parametrize("payload", UNREADABLE.values(), ids=UNREADABLE)
async def test_f22_unreadable_message_is_buried_on_first_sight_and_the_next_one_runs(
    nats: LocalServer, config: SchedulerConfig, payload: bytes
) -> None:
    subject = request_subject(MODEL, Priority.NORMAL)
    async with bus_stack(nats.url, config) as stack:
        edge = await stack.add_edge()
        client = await connect(nats.url)
        jetstream = client.jetstream()
        await jetstream.publish(subject, payload, headers={"Nats-Msg-Id": "e" * 32})
        begin_s = time.monotonic()
        edge.check(await edge.send("next").done())
        assert time.monotonic() - begin_s < 5.0
        await stack.until_drained()
        assert stack.num_dead_letters() == 1
        raw = await jetstream.get_last_msg(DEAD_LETTER_STREAM, f"mr.v1.dlq.{model_slug(MODEL)}")
        consumer = request_consumer(MODEL, Priority.NORMAL)
        info = await jetstream.consumer_info(REQUEST_STREAM, consumer)
        await client.close()
        assert (info.num_ack_pending, info.num_redelivered) == (0, 0)
        assert raw.data is not None and b"secret" not in raw.data
        letter = dead_letter_from_proto(bus_pb2.DeadLetter.FromString(raw.data))
        assert (letter.subject, letter.num_payload_bytes) == (subject, len(payload))
        assert letter.payload_hash == blake2b(payload, digest_size=16).digest()
        assert (letter.reason, letter.num_attempts) == ("UNREADABLE", 1)
        assert letter.request_id == "e" * 32


async def test_f22_thousand_unreadable_messages_do_not_stop_the_others(
    nats: LocalServer, config: SchedulerConfig
) -> None:
    async with bus_stack(nats.url, config) as stack:
        edge = await stack.add_edge()
        client = await connect(nats.url)
        for number in range(1_000):
            await client.publish(request_subject(MODEL, Priority.NORMAL), b"\xff%d" % number)
        await client.flush()
        replies = [edge.send(f"between {number}") for number in range(10)]
        for reply in replies:
            edge.check(await reply.done())
        await until(lambda: stack.num_dead_letters() == 1_000)
        await stack.until_drained()
        await client.close()


async def test_f23_duplicate_publish_is_one_execution(
    nats: LocalServer, config: SchedulerConfig
) -> None:
    async with bus_stack(nats.url, config) as stack:
        edge = await stack.add_edge()
        other = await stack.connect("other")
        assert stack.engine is not None
        stack.engine.gate.clear()
        reply = await _answered(edge.send("once"))
        request = edge.bus.requests[reply.request_id]
        for _ in range(3):
            await other.publish_request(request, {})
        stack.engine.gate.set()
        edge.check(await reply.done())
        await other.publish_request(request, {})
        edge.check(await edge.send("another").done())
        await stack.until_drained()
        stats = await stack.stats()
        assert stats.workers[0].num_admissions == 2


async def test_f23_same_key_is_one_execution_attached_replayed_or_refused(
    nats: LocalServer, config: SchedulerConfig
) -> None:
    async with bus_stack(nats.url, config) as stack:
        here, elsewhere = await stack.add_edge("here"), await stack.add_edge("elsewhere")
        assert stack.engine is not None
        stack.engine.gate.clear()
        first = await _answered(here.send("once", key="k"))
        attached = await _answered(here.send("once", key="k"))
        refused = await elsewhere.send("once", key="k").done()
        assert refused.code is grpc.StatusCode.ALREADY_EXISTS
        stack.engine.gate.set()
        here.check(await first.done())
        await attached.done()
        await here.pipeline.finish_errands()
        replayed = await elsewhere.send("once", key="k").done()
        other_body = await elsewhere.send("twice", key="k").done()
        for reply in (attached, replayed):
            assert reply.error is None and reply.is_finished
            assert reply.token_ids == first.token_ids
        assert other_body.code is grpc.StatusCode.ALREADY_EXISTS
        stats = await stack.stats()
        assert stats.workers[0].num_admissions == 1
