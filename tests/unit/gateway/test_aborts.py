"""An aborted request is an error to HTTP clients, and an abort reaches all of a batch."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from millrace.core.tokens import Failed, FinishReason, TokenFrame

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
EPOCH = 7
BODIES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": [{"role": "user", "content": "hi"}], "n": 2}),
    (TEXT, {"prompt": "hi"}),
    ("/generate", {"prompt": "hi"}),
]


def payloads(text: str) -> list[Any]:
    found = [block.removeprefix("data: ") for block in text.split("\n\n") if block]
    return [each if each == "[DONE]" else json.loads(each) for each in found]


async def asked(gateway: Harness, path: str, body: dict[str, Any]) -> Any:
    async with asyncio.timeout(10), gateway.client() as client:
        return await client.post(path, json=body)


@pytest.mark.parametrize(("path", "body"), BODIES)
@pytest.mark.parametrize("has_begun", [True, False])
async def test_aborted_stream_ends_with_an_error_event(
    gateway: Harness, path: str, body: dict[str, Any], has_begun: bool
) -> None:
    gateway.silence()
    going = asyncio.create_task(asked(gateway, path, {**body, "stream": True}))
    await gateway.until(lambda: gateway.bus.published != [])
    if has_begun:
        gateway.send([300], 0)
        await gateway.until(lambda: gateway.tokenizer.decode_calls != [])
    request_id = gateway.queued.request_id

    await gateway.until(lambda: gateway.pipeline._opening == {})
    assert await gateway.pipeline.abort(request_id)
    reply = await going

    events = payloads(reply.text)
    assert events[-1] == "[DONE]"
    assert events[-2]["error"]["code"] == "aborted"
    assert events[-2]["error"]["type"] == "aborted_error"
    assert '"abort"' not in reply.text
    assert reply.headers["x-request-id"] == request_id


@pytest.mark.parametrize(("path", "body"), BODIES)
@pytest.mark.parametrize("is_elsewhere", [True, False])
async def test_aborted_reply_is_an_error_status(
    gateway: Harness, path: str, body: dict[str, Any], is_elsewhere: bool
) -> None:
    gateway.silence()
    going = asyncio.create_task(asked(gateway, path, body))
    await gateway.until(lambda: gateway.bus.published != [] and not gateway.pipeline._opening)
    gateway.send([300], 0)
    await gateway.until(lambda: gateway.tokenizer.decode_calls != [])

    if is_elsewhere:
        failed = Failed(gateway.queued.request_id, 1, "ABORTED", "aborted")
        gateway.stream.push(TokenFrame(EPOCH, failed=[failed]))
    else:
        await gateway.pipeline.abort(gateway.queued.request_id)
    reply = await going

    assert reply.status_code == 499
    assert reply.json()["error"]["code"] == "aborted"
    assert reply.headers["x-should-retry"] == "false"


async def live_parts(gateway: Harness, count: int) -> list[str]:
    await gateway.until(lambda: len(gateway.bus.published) == count)
    await gateway.until(lambda: gateway.pipeline._opening == {})
    return [request.request_id for request in gateway.bus.published]


async def batch_id(gateway: Harness) -> str:
    await gateway.until(lambda: gateway.pipeline._batches != {})
    return next(iter(gateway.pipeline._batches))


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_abort_by_the_id_of_the_call_ends_every_prompt(
    gateway: Harness, is_streamed: bool
) -> None:
    gateway.silence()
    body = {"prompt": ["a", "b", "c"], "stream": is_streamed}
    going = asyncio.create_task(asked(gateway, TEXT, body))
    parts = await live_parts(gateway, 3)

    was_live = await gateway.pipeline.abort(await batch_id(gateway))
    reply = await going

    assert was_live
    assert {each[1] for each in gateway.stream.told("abort")} == set(parts)
    assert "aborted" in reply.text
    assert reply.status_code == (200 if is_streamed else 499)
    assert gateway.pipeline._batches == {}
    assert gateway.pipeline.num_in_flight == 0


async def test_abort_ends_the_running_and_the_waiting_of_a_batch(gateway: Harness) -> None:
    import dataclasses

    gateway.silence()
    gateway.edge = dataclasses.replace(gateway.edge, max_batch_concurrency=2)
    body = {"requests": [{"prompt": "a"}] * 5}
    going = asyncio.create_task(asked(gateway, "/generate/batch", body))
    await live_parts(gateway, 2)

    # As another gateway hears of it over the bus.
    assert gateway.pipeline.abort_here(await batch_id(gateway))
    reply = await going

    assert [each["error"]["code"] for each in reply.json()["results"]] == ["aborted"] * 5
    assert len(gateway.bus.published) == 2
    assert not gateway.pipeline.abort_here(reply.headers["x-request-id"])


async def test_abort_of_a_batch_that_another_gateway_has_goes_over_the_bus(
    gateway: Harness,
) -> None:
    assert not await gateway.pipeline.abort("f" * 32)
    assert gateway.bus.aborted == ["f" * 32]


async def test_refused_batch_leaves_nothing_behind(gateway: Harness) -> None:
    for is_streamed in (True, False):
        body = {"prompt": ["a", "x" * 90], "stream": is_streamed}
        assert (await asked(gateway, TEXT, body)).status_code == 400
    await gateway.until(lambda: gateway.pipeline.num_in_flight == 0)
    assert gateway.pipeline._batches == {}


async def test_abort_by_the_id_of_a_call_that_joined_ends_it_alone(gateway: Harness) -> None:
    gateway.silence()
    body = {"prompt": "a", "idempotency_key": "k", "stream": True}
    first = asyncio.create_task(asked(gateway, TEXT, body))
    await live_parts(gateway, 1)
    second = asyncio.create_task(asked(gateway, TEXT, body))
    await gateway.until(lambda: gateway.pipeline._readers != {})
    joined = next(iter(gateway.pipeline._readers))

    assert await gateway.pipeline.abort(joined)
    assert "aborted" in (await second).text
    gateway.send([300], 0, FinishReason.LENGTH)

    assert "aborted" not in (await first).text
    assert gateway.pipeline._readers == {}
    await gateway.pipeline.finish_errands()
