"""Idempotency keys: one run per key, whoever asks, however it ends."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pytest

from millrace.core.chat import ChatMessage
from millrace.core.errors import (
    Aborted,
    Conflict,
    DeadlineExceeded,
    InternalError,
    Overloaded,
    Unavailable,
    Unsupported,
)
from millrace.core.idempotency import IdempotencyRecord
from millrace.core.tokens import Failed, FinishReason, TokenFrame
from millrace.gateway import idempotency
from millrace.gateway.events import Delta, Finished, Started
from millrace.gateway.generation import GenerationRequest
from millrace.gateway.idempotency import hash_of_body, record_key
from millrace.gateway.pipeline import PipelineLimits

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

EOS = 256
KEY = "secret-key"


def text_of(events: list[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


async def ended(gateway: Harness) -> None:
    """The ends of all requests are told."""
    await gateway.until(lambda: gateway.pipeline._keyed.num_running == 0)


def has_decoded(gateway: Harness, index: int) -> bool:
    return len(gateway.tokenizer.decode_calls) > index


async def open_and_read(gateway: Harness, **fields: Any) -> list[Any]:
    return await gateway.read(await gateway.open(idempotency_key=KEY, **fields))


async def test_second_call_after_the_end_gets_the_answer_marked_cached(gateway: Harness) -> None:
    first = await open_and_read(gateway)
    second = await open_and_read(gateway)

    assert len(gateway.bus.published) == 1
    assert (first[0].is_cached, first[-1].is_cached) == (False, False)
    assert (second[0].is_cached, second[-1].is_cached) == (True, True)
    assert text_of(second) == text_of(first) == "Hello, world!"
    assert second[-1].choices == first[-1].choices
    assert second[0].request_id != first[0].request_id
    assert (second[0].seed, second[0].revision) == (first[0].seed, first[0].revision)
    assert gateway.records.holds_s[0] == 660.0


async def test_second_call_while_the_first_runs_gets_the_whole_stream(gateway: Harness) -> None:
    gateway.silence()
    first = await gateway.open(idempotency_key=KEY)
    gateway.send([300, 301], 0)
    reader = aiter(first)
    await anext(reader)
    await anext(reader)

    second = await gateway.open(idempotency_key=KEY)
    gateway.send([302, EOS], 2, FinishReason.STOP)
    rest = [event async for event in reader]
    whole = await gateway.read(second)

    assert len(gateway.bus.published) == 1
    assert text_of(whole) == "Hello, world"
    assert cast(Finished, whole[-1]).choices == cast(Finished, rest[-1]).choices
    assert cast(Started, whole[0]).request_id == gateway.queued.request_id
    first.abandon()
    await ended(gateway)


async def test_many_calls_at_once_run_once(gateway: Harness) -> None:
    found = await asyncio.gather(*(open_and_read(gateway) for _ in range(20)))

    assert len(gateway.bus.published) == 1
    assert {text_of(events) for events in found} == {"Hello, world!"}
    await ended(gateway)
    assert gateway.pipeline.num_in_flight == 0


@pytest.mark.parametrize("is_running", [True, False])
async def test_another_body_is_a_conflict_that_shows_only_the_keys_beginning(
    gateway: Harness, is_running: bool
) -> None:
    if is_running:
        gateway.silence()
        answer = await gateway.open(idempotency_key=KEY)
    else:
        await open_and_read(gateway)
        await ended(gateway)

    with pytest.raises(Conflict, match="'secr' was used with another body") as caught:
        await gateway.open(idempotency_key=KEY, text="other")

    assert "secret" not in caught.value.message
    assert caught.value.field == "idempotency_key"
    assert len(gateway.bus.published) == 1
    if is_running:
        answer.abandon()
        await ended(gateway)


async def test_key_of_another_gateway_that_runs_is_a_conflict(gateway: Harness) -> None:
    request = GenerationRequest(text="hi", idempotency_key=KEY)
    gateway.records.records[record_key(request)] = IdempotencyRecord(
        hash_of_body(request), "a" * 32, "gateway-2"
    )

    with pytest.raises(Conflict, match="runs elsewhere"):
        await gateway.open(idempotency_key=KEY)

    assert gateway.bus.published == []
    assert len(gateway.records.records) == 1
    await ended(gateway)


async def test_without_redis_only_requests_with_a_key_are_refused(gateway: Harness) -> None:
    gateway.records.is_up = False

    with pytest.raises(Unavailable) as caught:
        await gateway.open(idempotency_key=KEY)
    assert caught.value.field == "idempotency_key"
    assert gateway.bus.published == []

    assert text_of(await gateway.read(await gateway.open())) == "Hello, world!"
    await ended(gateway)
    gateway.records.is_up = True
    assert text_of(await open_and_read(gateway)) == "Hello, world!"


async def test_without_a_cache_service_keys_are_unsupported(gateway: Harness) -> None:
    gateway.pipeline._keyed._records = None

    with pytest.raises(Unsupported, match="cache service"):
        await gateway.open(idempotency_key=KEY)


async def test_failed_request_frees_its_key(gateway: Harness) -> None:
    gateway.silence()
    answer = await gateway.open(idempotency_key=KEY)
    failed = Failed(gateway.queued.request_id, 0, "INTERNAL", "it broke")
    gateway.stream.push(TokenFrame(7, failed=[failed]))
    with pytest.raises(InternalError):
        await gateway.read(answer)

    gateway.bus.on_request = gateway._play
    assert text_of(await open_and_read(gateway)) == "Hello, world!"
    assert len(gateway.bus.published) == 2


async def test_refused_request_frees_its_key(gateway: Harness) -> None:
    gateway.bus.refusal = Overloaded("full", retry_after_s=1.0)
    with pytest.raises(Overloaded):
        await gateway.open(idempotency_key=KEY)

    gateway.bus.refusal = None
    assert text_of(await open_and_read(gateway)) == "Hello, world!"


async def test_aborted_request_frees_its_key(gateway: Harness) -> None:
    gateway.silence()
    answer = await gateway.open(idempotency_key=KEY)
    await gateway.pipeline.abort(gateway.queued.request_id)
    events = await gateway.read(answer)
    assert cast(Finished, events[-1]).choices[0].finish_reason is FinishReason.ABORT

    await ended(gateway)

    assert gateway.records.records == {}


async def test_abandoned_request_ends_and_frees_its_key(gateway: Harness) -> None:
    gateway.silence()
    answer = await gateway.open(idempotency_key=KEY)

    answer.abandon()

    await ended(gateway)
    assert gateway.records.records == {}
    assert gateway.pipeline.num_in_flight == 0
    await gateway.until(lambda: gateway.stream.told("abort") != [])


async def test_request_goes_on_for_a_second_caller_when_the_first_leaves(gateway: Harness) -> None:
    gateway.silence()
    first = await gateway.open(idempotency_key=KEY)
    second = await gateway.open(idempotency_key=KEY)

    first.abandon()
    gateway.send([300, EOS], 0, FinishReason.STOP)

    assert text_of(await gateway.read(second)) == "Hello"
    assert gateway.stream.told("abort") == []
    await ended(gateway)


async def test_deadline_of_the_second_caller_ends_only_its_own_reading(gateway: Harness) -> None:
    gateway.silence()
    first = await gateway.open(idempotency_key=KEY)
    second = await gateway.open(idempotency_key=KEY, timeout_ms=30)

    with pytest.raises(DeadlineExceeded, match="30 ms"):
        await gateway.read(second)
    gateway.send([300, EOS], 0, FinishReason.STOP)

    assert text_of(await gateway.read(first)) == "Hello"
    await ended(gateway)


async def test_cancelled_opening_frees_the_key_for_the_one_that_waits(gateway: Harness) -> None:
    gateway.tokenizer.gate = asyncio.Event()
    first = asyncio.create_task(gateway.open(idempotency_key=KEY))
    await gateway.until(lambda: gateway.records.records != {})
    second = asyncio.create_task(open_and_read(gateway))
    await asyncio.sleep(0)

    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    gateway.tokenizer.gate.set()

    assert text_of(await second) == "Hello, world!"
    assert len(gateway.bus.published) == 1
    await ended(gateway)


async def test_key_that_could_not_be_freed_is_taken_over_by_the_next_call(
    gateway: Harness,
) -> None:
    gateway.silence()
    answer = await gateway.open(idempotency_key=KEY)
    gateway.records.is_up = False
    answer.abandon()
    await ended(gateway)
    assert len(gateway.records.records) == 1

    gateway.records.is_up = True
    gateway.bus.on_request = gateway._play

    assert text_of(await open_and_read(gateway)) == "Hello, world!"


async def test_answer_that_could_not_be_kept_is_never_run_again(
    gateway: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "RETRY_S", 0.001)
    gateway.silence()
    answer = await gateway.open(idempotency_key=KEY)
    gateway.records.is_up = False
    gateway.send([300, EOS], 0, FinishReason.STOP)
    assert text_of(await gateway.read(answer)) == "Hello"
    await ended(gateway)
    gateway.records.is_up = True

    with pytest.raises(Conflict):
        await gateway.open(idempotency_key=KEY)
    assert len(gateway.bus.published) == 1


async def test_end_is_told_after_the_cache_service_is_back(
    gateway: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "RETRY_S", 0.01)
    gateway.silence()
    answer = await gateway.open(idempotency_key=KEY)
    gateway.records.is_up = False
    gateway.send([300, EOS], 0, FinishReason.STOP)
    await gateway.read(answer)
    gateway.records.is_up = True

    assert text_of(await open_and_read(gateway)) == "Hello"
    assert len(gateway.bus.published) == 1


async def test_answer_with_logprobs_is_not_replayed_and_not_run_again(gateway: Harness) -> None:
    await open_and_read(gateway, sampling={"top_logprobs": 1})

    with pytest.raises(Conflict, match="not kept"):
        await gateway.open(idempotency_key=KEY, sampling={"top_logprobs": 1})


async def test_tenants_do_not_share_keys(gateway: Harness) -> None:
    await open_and_read(gateway, tenant="a")
    await open_and_read(gateway, tenant="b", text="other")

    assert len(gateway.bus.published) == 2
    await ended(gateway)


class TestWithSmallBuffer:
    """A reader that lags is cut, and it alone."""

    @pytest.fixture
    def limits(self) -> PipelineLimits:
        return PipelineLimits(max_buffered_events=8)

    async def test_slow_reader_is_cut_alone(self, gateway: Harness) -> None:
        gateway.silence()
        quick = await gateway.open(idempotency_key=KEY)
        slow = await gateway.open(idempotency_key=KEY)
        is_cut = asyncio.Event()
        slow.on_cut = is_cut.set
        reading = asyncio.create_task(gateway.read(quick))
        for index in range(20):
            gateway.send([65], index)
            await gateway.until(partial(has_decoded, gateway, index))
        gateway.send([EOS], 20, FinishReason.STOP)

        assert text_of(await reading) == "A" * 20
        assert is_cut.is_set()
        with pytest.raises(Aborted, match="too slowly"):
            await gateway.read(slow)
        await ended(gateway)


@pytest.mark.parametrize(
    ("changed", "is_same"),
    [
        ({"timeout_ms": 5}, True),
        ({"is_streamed": True}, True),
        ({"text": "hello"}, False),
        ({"text": None, "messages": (ChatMessage("user", "hi"),)}, False),
        ({"text": None, "token_ids": (1,)}, False),
        ({"model": "tiny"}, False),
    ],
)
def test_body_is_what_the_answer_depends_on(changed: dict[str, Any], is_same: bool) -> None:
    plain = GenerationRequest(text="hi")
    other = GenerationRequest(**{"text": "hi", **changed})

    assert (hash_of_body(plain) == hash_of_body(other)) is is_same


CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/generate"])
async def test_header_and_field_name_the_same_key(gateway: Harness, path: str) -> None:
    body = BODY if path == CHAT else {"prompt": "hi"}
    async with gateway.client() as client:
        first = await client.post(path, json=body, headers={"Idempotency-Key": KEY})
        second = await client.post(path, json={**body, "idempotency_key": KEY})
        other = await client.post(path, json={**body, "idempotency_key": KEY, "seed": 1})
        unequal = await client.post(
            path, json={**body, "idempotency_key": "a"}, headers={"Idempotency-Key": "b"}
        )

    assert (first.status_code, second.status_code) == (200, 200)
    assert len(gateway.bus.published) == 1
    replies = [reply.json() for reply in (first, second)]
    assert [(each.get("millrace") or each)["cached"] for each in replies] == [False, True]
    error = other.json()["error"]
    assert (other.status_code, error["code"], error["param"]) == (
        409,
        "conflict",
        "idempotency_key",
    )
    assert KEY not in other.text
    # The official clients retry a 409 unless told not to.
    assert other.headers["x-should-retry"] == "false"
    assert unequal.status_code == 400


async def test_key_without_redis_is_503_with_retry_after(gateway: Harness) -> None:
    gateway.records.is_up = False
    async with gateway.client() as client:
        reply = await client.post(CHAT, json=BODY, headers={"Idempotency-Key": KEY})

    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": ["a", "b"]}),
        ("/generate/batch", {"requests": [{"prompt": "a"}]}),
    ],
)
async def test_one_key_for_many_prompts_is_refused(
    gateway: Harness, path: str, body: dict[str, Any]
) -> None:
    async with gateway.client() as client:
        reply = await client.post(path, json=body, headers={"Idempotency-Key": KEY})

    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "idempotency_key"
    assert gateway.bus.published == []
