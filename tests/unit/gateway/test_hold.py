"""New requests wait for a part that restarts, for as long as the setting says, and then run."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from millrace.core.errors import DeadlineExceeded, Unavailable
from millrace.gateway.events import Finished
from millrace.gateway.hold import Hold
from millrace.gateway.pipeline import PipelineLimits
from millrace.telemetry.cause import Cause
from millrace.telemetry.diagnosis import diagnose
from millrace.telemetry.names import ATTR_HOLD_REASON, SPAN_HOLD
from millrace.testing.span_recorder import SpanRecorder

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

PATIENT_S = 30.0


@pytest.fixture
def limits() -> PipelineLimits:
    return PipelineLimits(hold_s=PATIENT_S)


async def lose_scheduler(gateway: Harness) -> Callable[[], Awaitable[None]]:
    gateway.is_refusing_streams = True
    gateway.stream.break_off()
    await gateway.until(lambda: not gateway.directory.get("tiny").is_attached)

    async def come_back() -> None:
        gateway.is_refusing_streams = False

    return come_back


async def lose_worker(gateway: Harness) -> Callable[[], Awaitable[None]]:
    status = gateway.directory.status("tiny")
    assert status is not None
    gateway.directory.on_status(replace(status, num_workers=0))

    async def come_back() -> None:
        gateway.directory.on_status(status)

    return come_back


async def lose_tokenizer(gateway: Harness) -> Callable[[], Awaitable[None]]:
    gateway.tokenizer.is_serving = False

    async def come_back() -> None:
        gateway.tokenizer.is_serving = True

    return come_back


async def lose_bus(gateway: Harness) -> Callable[[], Awaitable[None]]:
    gateway.bus.refusal = Unavailable("the message bus is away")

    async def come_back() -> None:
        gateway.bus.refusal = None

    return come_back


async def lose_records(gateway: Harness) -> Callable[[], Awaitable[None]]:
    gateway.records.is_up = False

    async def come_back() -> None:
        gateway.records.is_up = True

    return come_back


LOSSES = [lose_scheduler, lose_worker, lose_tokenizer, lose_bus, lose_records]


@pytest.mark.parametrize("lose", LOSSES)
async def test_a_request_waits_for_the_part_and_runs_once(gateway: Harness, lose: Any) -> None:
    come_back = await lose(gateway)

    opening = asyncio.create_task(gateway.open(idempotency_key="order-77"))
    await asyncio.sleep(0.1)
    assert not opening.done()
    await come_back()

    events = await gateway.read(await asyncio.wait_for(opening, 10))
    assert isinstance(events[-1], Finished)
    assert len(gateway.bus.published) == 1


@pytest.mark.parametrize("lose", LOSSES)
async def test_the_trace_tells_what_a_request_waited_for(
    gateway: Harness, recorder: SpanRecorder, lose: Any
) -> None:
    come_back = await lose(gateway)
    async with gateway.client() as client:
        asked = asyncio.create_task(
            client.post(
                "/v1/chat/completions",
                json={"messages": [{"role": "user", "content": "hi"}]},
                headers={"idempotency-key": "order-77"},
            )
        )
        await asyncio.sleep(0.2)
        await come_back()
        reply = await asyncio.wait_for(asked, 10)

    spans = recorder.spans_of_services()
    root = next(span for span in spans if span.is_request)
    (hold,) = [span for span in spans if span.name == SPAN_HOLD]
    diagnosis = diagnose([span for span in spans if span.trace_id == root.trace_id])
    assert reply.status_code == 200
    assert hold.duration_s > 0.1
    assert diagnosis.seconds[Cause.PART_AWAY] == pytest.approx(hold.duration_s)
    assert diagnosis.cause is Cause.PART_AWAY
    reason = hold.attributes[ATTR_HOLD_REASON]
    assert re.fullmatch(
        rf"cause: part away: it waited .* because {re.escape(reason)}(; .*)?", diagnosis.sentence
    )


@pytest.mark.parametrize("lose", LOSSES)
async def test_a_drain_waits_for_nobody(gateway: Harness, lose: Any) -> None:
    await lose(gateway)

    opening = asyncio.create_task(gateway.open(idempotency_key="order-77"))
    await asyncio.sleep(0.1)
    gateway.pipeline.start_draining()

    with pytest.raises(Unavailable):
        await asyncio.wait_for(opening, 10)


async def test_the_deadline_of_a_request_ends_its_wait(gateway: Harness) -> None:
    await lose_tokenizer(gateway)

    with pytest.raises(DeadlineExceeded):
        await gateway.open(timeout_ms=200)


async def test_a_client_that_leaves_ends_its_wait(gateway: Harness) -> None:
    come_back = await lose_tokenizer(gateway)
    opening = asyncio.create_task(gateway.open())
    await asyncio.sleep(0.1)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    await come_back()

    assert gateway.pipeline.num_in_flight == 0
    assert not gateway.bus.published


async def test_the_answer_to_a_claim_that_was_lost_is_no_conflict(gateway: Harness) -> None:
    claim = gateway.records.claim
    num_calls = 0

    async def claim_and_lose_the_answer(*args: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        answer = await claim(*args)
        if num_calls == 1:
            raise Unavailable("no answer")
        return answer

    gateway.records.claim = claim_and_lose_the_answer  # type: ignore[method-assign, assignment]

    events = await gateway.read(await gateway.open(idempotency_key="order-77"))

    assert num_calls == 2
    assert isinstance(events[-1], Finished)


async def test_the_time_is_shared_by_all_steps() -> None:
    hold = Hold(0.3)
    num_tries = 0

    async def fail() -> None:
        nonlocal num_tries
        num_tries += 1
        raise Unavailable("away")

    began_s = time.monotonic()
    for _ in range(20):
        with pytest.raises(Unavailable):
            await hold.until_there(fail)

    assert time.monotonic() - began_s < 5
    assert num_tries < 30


async def test_without_patience_nothing_is_tried_again(recorder: SpanRecorder) -> None:
    num_tries = 0

    async def fail() -> None:
        nonlocal num_tries
        num_tries += 1
        raise Unavailable("away")

    with pytest.raises(Unavailable):
        await Hold(0).until_there(fail)
    assert num_tries == 1
    assert recorder.spans() == []
