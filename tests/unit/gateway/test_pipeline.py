"""The path of a request over fakes: text, stops, choices, limits, deadlines, aborts, cache."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pytest

from millrace.core.chat import ChatMessage
from millrace.core.encoded_prompt import EncodedPrompt
from millrace.core.errors import (
    Aborted,
    ContextLengthExceeded,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    Overloaded,
    Unavailable,
    UnknownModel,
)
from millrace.core.request import Priority
from millrace.core.tokens import Failed, FinishReason, TokenFrame
from millrace.gateway.events import ChoiceFinished, Delta, Finished, Started
from millrace.gateway.generation import CacheMode, GenerationRequest
from millrace.gateway.pipeline import PipelineLimits

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

EOS = 256
TEXT: dict[str, Any] = {"text": "hi"}
CHAT: dict[str, Any] = {"messages": (ChatMessage("user", "hi"),)}


def text_of(events: Any, choice: Any = 0) -> Any:
    return "".join(e.text for e in events if isinstance(e, Delta) and e.choice == choice)


def ids_of(events: Any, choice: Any = 0) -> Any:
    return [i for e in events if isinstance(e, Delta) and e.choice == choice for i in e.token_ids]


async def test_answer_is_started_deltas_end_and_finished(gateway: Harness) -> None:
    events = await gateway.read(await gateway.open(messages=(ChatMessage("user", "hey"),)))

    started, finished = events[0], events[-1]
    assert isinstance(started, Started)
    assert (started.model, started.num_prompt_tokens, started.is_cached) == ("tiny", 4, False)
    assert isinstance(finished, Finished)
    assert text_of(events) == "Hello, world!"
    assert ids_of(events) == [300, 301, 302, 303, EOS]
    assert finished.choices == (ChoiceFinished(0, FinishReason.STOP, None, 5),)
    assert events[-2] == finished.choices[0]
    assert (finished.usage.num_prompt_tokens, finished.usage.num_output_tokens) == (4, 5)
    assert 0 < finished.timings.time_to_first_token_ns <= finished.timings.total_ns
    assert finished.timings.queue_ns == 1000


async def test_queued_request_is_resolved(gateway: Harness) -> None:
    await gateway.read(
        await gateway.open(
            text="abc",
            model="small",
            priority=Priority.HIGH,
            timeout_ms=5000,
            sampling={"stop_token_ids": (9,), "max_tokens": 2, "temperature": 0.5},
        )
    )

    queued = gateway.queued
    assert (queued.model, queued.prompt_token_ids) == ("tiny", [97, 98, 99])
    assert (queued.stop_token_ids, queued.max_tokens) == ((EOS, 9), 2)
    assert queued.priority is Priority.HIGH
    assert queued.deadline_unix_ms == queued.arrival_unix_ns // 1_000_000 + 5000
    assert queued.gateway_id == "gateway-1"
    assert len(queued.request_id) == 32
    assert ("register", queued.request_id) in gateway.stream.sent


async def test_absent_max_tokens_is_what_is_left_of_the_context(gateway: Harness) -> None:
    await gateway.read(await gateway.open(text="a" * 60))

    assert gateway.queued.max_tokens == 4


async def test_seed_is_drawn_and_reported(gateway: Harness) -> None:
    first = await gateway.open()
    second = await gateway.open(sampling={"seed": 2**64 - 1})
    await gateway.read(first)
    await gateway.read(second)

    assert first.started.seed == gateway.bus.published[0].sampling.seed
    assert second.started.seed == gateway.queued.sampling.seed == 2**64 - 1


async def test_ignored_eos_is_no_stop_token(gateway: Harness) -> None:
    events = await gateway.read(await gateway.open(sampling={"ignore_eos": True, "max_tokens": 5}))

    assert gateway.queued.stop_token_ids == ()
    assert events[-1].choices[0].finish_reason is FinishReason.LENGTH


async def test_done_is_told_after_the_end(gateway: Harness) -> None:
    await gateway.read(await gateway.open())

    await gateway.until(lambda: gateway.stream.told("done") != [])
    assert gateway.stream.told("done") == [("done", gateway.queued.request_id)]
    assert gateway.stream.told("abort") == []


async def test_stop_string_across_frames_ends_and_aborts(gateway: Harness) -> None:
    gateway.silence()
    answer = await gateway.open(sampling={"stop": ("lo, w",)})
    gateway.send([300], 0)
    gateway.send([301], 1)
    gateway.send([302], 2)

    events = await gateway.read(answer)

    assert text_of(events) == "Hel"
    assert events[-1].choices == (ChoiceFinished(0, FinishReason.STOP, "lo, w", 3),)
    await gateway.until(lambda: gateway.stream.told("abort") != [])
    assert gateway.stream.told("abort") == [("abort", gateway.queued.request_id, "stop_string")]


async def test_stop_string_inside_one_frame_counts_to_its_token(gateway: Harness) -> None:
    gateway.silence()
    answer = await gateway.open(sampling={"stop": ("wor",)})
    gateway.send([300, 301, 302, 303, 65, 66], 0)

    events = await gateway.read(answer)

    assert text_of(events) == "Hello, "
    assert ids_of(events) == [300, 301, 302]
    assert events[-1].usage.num_output_tokens == 3


async def test_multi_byte_characters_come_whole(gateway: Harness) -> None:
    gateway.reply = [*"né 🌊!".encode(), EOS]

    events = await gateway.read(await gateway.open())

    assert text_of(events) == "né 🌊!"
    assert all("�" not in e.text for e in events if isinstance(e, Delta))


async def test_choices_are_interleaved_and_end_on_their_own(gateway: Harness) -> None:
    gateway.silence()
    answer = await gateway.open(sampling={"num_choices": 2})
    gateway.send([300], 0, choice=0)
    gateway.send([302], 0, choice=1)
    gateway.send([EOS], 1, FinishReason.STOP, choice=1)
    gateway.send([303, EOS], 1, FinishReason.STOP, choice=0)

    events = await gateway.read(answer)

    assert (text_of(events, 0), text_of(events, 1)) == ("Hello!", "world")
    ends = [e for e in events if isinstance(e, ChoiceFinished)]
    assert sorted((e.choice, e.num_output_tokens) for e in ends) == [(0, 3), (1, 2)]
    assert events[-1].usage.num_output_tokens == 5


async def test_one_decode_call_serves_all_rows_of_a_frame(gateway: Harness) -> None:
    answer = await gateway.open(sampling={"num_choices": 3})
    await gateway.read(answer)

    assert all(len(rows) == 3 for rows in gateway.tokenizer.decode_calls)
    assert len(gateway.tokenizer.decode_calls) <= 5


async def test_decode_is_tried_again_when_the_tokenizer_fails(
    gateway: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millrace.gateway.detokenizer.RETRY_DELAYS_S", (0.0, 0.0))
    gateway.tokenizer.num_failures = 2

    events = await gateway.read(await gateway.open())

    assert text_of(events) == "Hello, world!"


async def test_request_fails_when_the_tokenizer_stays_away(
    gateway: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millrace.gateway.detokenizer.RETRY_DELAYS_S", ())
    gateway.silence()
    answer = await gateway.open()
    gateway.tokenizer.num_failures = 10
    gateway.send([300], 0)

    with pytest.raises(Unavailable):
        await gateway.read(answer)
    await gateway.until(lambda: gateway.stream.told("abort") != [])


async def test_logprobs_name_tokens_with_their_bytes(gateway: Harness) -> None:
    gateway.reply = [0xC3, 0xA9, EOS]
    events = await gateway.read(await gateway.open(sampling={"top_logprobs": 2}))

    positions = [p for e in events if isinstance(e, Delta) for p in e.logprobs]
    assert [p.chosen.raw for p in positions] == [b"\xc3", b"\xa9", b""]
    assert positions[0].chosen.text == "�"
    assert [(t.token_id, t.text, t.logprob) for t in positions[0].top] == [
        (0xC3, "�", -0.5),
        (65, "A", -1.5),
    ]


@pytest.mark.parametrize(("prompt", "text"), [(TEXT, " Hello END"), (CHAT, "Hello END")])
async def test_text_of_a_completion_goes_on_behind_its_prompt(
    gateway: Harness, prompt: Any, text: str
) -> None:
    """With one space more, or as an answer that begins anew; its tokens add up to it."""
    gateway.reply = [32, 300, 304, EOS]
    events = await gateway.read(await gateway.open(**prompt, sampling={"top_logprobs": 1}))

    positions = [p for e in events if isinstance(e, Delta) for p in e.logprobs]
    assert text_of(events) == text
    assert b"".join(p.chosen.raw for p in positions).decode() == text
    assert positions[0].top[0].raw == positions[0].chosen.raw


@pytest.mark.parametrize("prompt", [TEXT, CHAT])
async def test_encoded_id_that_the_model_lacks_is_refused(gateway: Harness, prompt: Any) -> None:
    async def encode(model: str, _: Any, max_ids: int | None = None) -> EncodedPrompt:
        return EncodedPrompt(4, [1, 511, 512, 600])

    gateway.tokenizer.encode_text = gateway.tokenizer.encode_chat = encode  # type: ignore[method-assign, assignment]
    for call in (
        gateway.open(**prompt),
        gateway.pipeline.count_tokens(GenerationRequest(**prompt)),
    ):
        with pytest.raises(
            InvalidRequest, match="token id 600; tiny has the token ids 0 to 511"
        ) as caught:
            await call
        assert caught.value.field == ("prompt" if prompt is TEXT else "messages")
    assert not gateway.bus.published


async def test_error_of_the_scheduler_reaches_the_reader(gateway: Harness) -> None:
    gateway.silence()
    answer = await gateway.open()
    request_id = gateway.queued.request_id
    gateway.stream.push(
        TokenFrame(7, failed=[Failed(request_id, 8, "OVERLOADED", "the window is full")])
    )

    with pytest.raises(Overloaded, match="the window is full"):
        await gateway.read(answer)
    await gateway.until(lambda: gateway.stream.told("done") != [])


async def test_end_with_error_is_internal(gateway: Harness) -> None:
    gateway.silence()
    answer = await gateway.open()
    gateway.send([300], 0)
    gateway.send([], 1, FinishReason.ERROR)

    with pytest.raises(InternalError):
        await gateway.read(answer)


@pytest.mark.parametrize(
    ("fields", "error", "field", "words"),
    [
        ({"model": "nope"}, UnknownModel, "model", ["'nope'", "tiny"]),
        ({"text": "a" * 64}, ContextLengthExceeded, "prompt", ["64"]),
        (
            {"text": "abc", "sampling": {"max_tokens": 62}},
            ContextLengthExceeded,
            "max_tokens",
            ["3", "62", "65", "64"],
        ),
        ({"text": None, "token_ids": (1, 512)}, InvalidRequest, "prompt", ["512", "511"]),
        ({"text": None, "token_ids": (-1,)}, InvalidRequest, "prompt", ["-1", "511"]),
        (
            {"sampling": {"logit_bias": ((600, 1.0),)}},
            InvalidRequest,
            "logit_bias",
            ["600", "511"],
        ),
        (
            {"sampling": {"stop_token_ids": (512,)}},
            InvalidRequest,
            "stop_token_ids",
            ["512", "511"],
        ),
        ({"sampling": {"min_tokens": 70}}, InvalidRequest, "min_tokens", ["70", "62"]),
        ({"timeout_ms": 3_600_001}, InvalidRequest, "timeout_ms", ["3600001", "3600000"]),
    ],
)
async def test_refusals_name_field_value_and_limit(
    gateway: Harness, fields: Any, error: Any, field: Any, words: Any
) -> None:
    with pytest.raises(error) as caught:
        await gateway.open(**fields)

    assert caught.value.field == field
    assert all(word in caught.value.message for word in words)
    assert gateway.bus.published == []
    assert gateway.pipeline.num_in_flight == 0


@pytest.mark.parametrize(
    ("fields", "error", "field"),
    [
        ({"text": ""}, InvalidRequest, "prompt"),
        ({"text": None}, InvalidRequest, "prompt"),
        ({"text": None, "messages": ()}, InvalidRequest, "messages"),
        ({"text": "a", "token_ids": (1,)}, InvalidRequest, "prompt"),
        ({"text": "a\ud800"}, InvalidRequest, "prompt"),
        (
            {"text": None, "messages": (ChatMessage("", "x"),)},
            InvalidRequest,
            "messages[0].role",
        ),
        ({"sampling": {"stop": ("\udfff",)}}, InvalidRequest, "stop[0]"),
        ({"timeout_ms": 0}, InvalidRequest, "timeout_ms"),
        ({"idempotency_key": ""}, InvalidRequest, "idempotency_key"),
        ({"idempotency_key": "k" * 129}, InvalidRequest, "idempotency_key"),
        ({"idempotency_key": "\ud800"}, InvalidRequest, "idempotency_key"),
    ],
)
async def test_request_that_is_wrong_in_itself_is_refused(
    gateway: Harness, fields: Any, error: Any, field: Any
) -> None:
    with pytest.raises(error) as caught:
        await gateway.open(**fields)

    assert caught.value.field == field


async def test_model_without_worker_is_unavailable(gateway: Harness) -> None:
    gateway.directory.on_detached("tiny")

    with pytest.raises(Unavailable) as caught:
        await gateway.open()
    assert caught.value.retry_after_s


async def test_full_queue_is_passed_on_and_retracted(gateway: Harness) -> None:
    gateway.bus.refusal = Overloaded("the queue is full", retry_after_s=3.0)

    with pytest.raises(Overloaded):
        await gateway.open()

    assert gateway.router.num_live == 0
    await gateway.until(lambda: gateway.stream.told("abort") != [])


async def test_unexpected_defect_becomes_internal_error_without_details(
    gateway: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def break_down(model: Any, text: Any) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(gateway.tokenizer, "encode_text", break_down)

    with pytest.raises(InternalError) as caught:
        await gateway.open()

    assert "secret" not in caught.value.message
    assert [record.exc_info is not None for record in caplog.records] == [True]


async def test_abandoned_answer_is_aborted(gateway: Harness) -> None:
    gateway.silence()
    answer = await gateway.open()
    gateway.send([300], 0)
    reader = aiter(answer)
    await anext(reader)
    await anext(reader)

    answer.abandon()

    await gateway.until(lambda: gateway.stream.told("abort") != [])
    assert gateway.stream.told("abort") == [("abort", gateway.queued.request_id, "client")]
    assert gateway.pipeline.num_in_flight == 0


async def test_cancelled_opening_leaves_nothing(gateway: Harness) -> None:
    gateway.tokenizer.gate = asyncio.Event()
    opening = asyncio.create_task(gateway.open())
    await asyncio.sleep(0)

    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening

    assert gateway.pipeline.num_in_flight == 0
    assert gateway.bus.published == []


async def test_abort_by_id_ends_with_abort(gateway: Harness) -> None:
    gateway.silence()
    answer = await gateway.open()
    gateway.send([300], 0)
    reader = aiter(answer)
    await anext(reader)
    await anext(reader)

    assert await gateway.pipeline.abort(gateway.queued.request_id) is True

    events = [event async for event in reader]
    assert cast(Finished, events[-1]).choices == (ChoiceFinished(0, FinishReason.ABORT, None, 1),)
    await gateway.until(lambda: gateway.stream.told("abort") != [])
    assert await gateway.pipeline.abort(gateway.queued.request_id) is False


async def test_abort_of_an_unknown_id_goes_to_the_bus(gateway: Harness) -> None:
    assert await gateway.pipeline.abort("f" * 32) is False
    assert gateway.bus.aborted == ["f" * 32]


async def test_deadline_ends_a_running_request(gateway: Harness) -> None:
    gateway.silence()
    answer = await gateway.open(timeout_ms=30)
    gateway.send([300], 0)

    with pytest.raises(DeadlineExceeded, match="30 ms"):
        await gateway.read(answer)
    await gateway.until(lambda: gateway.stream.told("abort") != [])
    assert gateway.stream.told("abort") == [("abort", gateway.queued.request_id, "deadline")]


async def test_deadline_ends_a_request_that_is_still_encoded(gateway: Harness) -> None:
    gateway.tokenizer.gate = asyncio.Event()

    with pytest.raises(DeadlineExceeded):
        await gateway.open(timeout_ms=20)


def decoded_or_cut(gateway: Harness, index: int, is_cut: asyncio.Event) -> bool:
    return len(gateway.tokenizer.decode_calls) > index or is_cut.is_set()


class TestWithSmallLimits:
    """Limits small enough to be met."""

    @pytest.fixture
    def limits(self) -> PipelineLimits:
        return PipelineLimits(max_in_flight=1, max_buffered_events=4)

    async def test_slow_client_is_cut_without_stopping_others(self, gateway: Harness) -> None:
        gateway.silence()
        answer = await gateway.open()
        is_cut = asyncio.Event()
        answer.on_cut = is_cut.set
        for index in range(8):
            gateway.send([65], index)
            await gateway.until(partial(decoded_or_cut, gateway, index, is_cut))

        await asyncio.wait_for(is_cut.wait(), 5)

        await gateway.until(lambda: gateway.stream.told("abort") != [])
        assert gateway.stream.told("abort")[0][2] == "slow_client"
        with pytest.raises(Aborted, match="limit is 4"):
            await gateway.read(answer)
        gateway.bus.on_request = gateway._play
        gateway.reply = [300, EOS]
        assert text_of(await gateway.read(await gateway.open())) == "Hello"

    async def test_request_over_the_limit_in_flight_is_refused(self, gateway: Harness) -> None:
        gateway.silence()
        answer = await gateway.open()

        with pytest.raises(Overloaded) as caught:
            await gateway.open()

        assert caught.value.retry_after_s
        answer.abandon()


async def test_draining_gateway_refuses_new_requests(gateway: Harness) -> None:
    gateway.pipeline.start_draining()

    with pytest.raises(Unavailable, match="shutting down"):
        await gateway.open()


async def test_running_requests_end_with_unavailable_when_the_gateway_gives_up(
    gateway: Harness,
) -> None:
    gateway.silence()
    answer = await gateway.open()
    await gateway.until(lambda: bool(gateway.stream.told("register")))

    assert gateway.pipeline.end_all() == 1

    with pytest.raises(Unavailable, match="shutting down"):
        await gateway.read(answer)
    assert gateway.pipeline.num_in_flight == 0
    await gateway.until(
        lambda: gateway.stream.told("abort") == [("abort", gateway.queued.request_id, "shutdown")]
    )


GREEDY = {"temperature": 0.0}


async def test_cache_answers_the_second_time(gateway: Harness) -> None:
    first = await gateway.read(await gateway.open(cache=CacheMode.USE, sampling=GREEDY))
    await gateway.pipeline.finish_errands()
    second = await gateway.read(await gateway.open(cache=CacheMode.USE, sampling=GREEDY))

    assert len(gateway.bus.published) == 1
    assert (first[0].is_cached, second[0].is_cached, second[-1].is_cached) == (False, True, True)
    assert text_of(second) == text_of(first)
    assert ids_of(second) == ids_of(first)
    assert second[-1].choices == first[-1].choices
    assert second[-1].usage == first[-1].usage


async def test_cache_is_off_unless_asked_for(gateway: Harness) -> None:
    await gateway.read(await gateway.open(cache=CacheMode.USE, sampling=GREEDY))
    await gateway.pipeline.finish_errands()
    await gateway.read(await gateway.open(sampling=GREEDY))

    assert len(gateway.bus.published) == 2
    assert gateway.cache.num_look_ups == 1


async def test_refresh_writes_and_does_not_read(gateway: Harness) -> None:
    await gateway.read(await gateway.open(cache=CacheMode.USE, sampling=GREEDY))
    await gateway.pipeline.finish_errands()
    gateway.reply = [303, EOS]
    await gateway.read(await gateway.open(cache=CacheMode.REFRESH, sampling=GREEDY))
    await gateway.pipeline.finish_errands()
    third = await gateway.read(await gateway.open(cache=CacheMode.USE, sampling=GREEDY))

    assert len(gateway.bus.published) == 2
    assert text_of(third) == "!"


@pytest.mark.parametrize(
    "sampling", [{"temperature": 1.0}, {"temperature": 0.0, "top_logprobs": 1}]
)
async def test_request_that_cannot_be_cached_is_run(gateway: Harness, sampling: Any) -> None:
    await gateway.read(await gateway.open(cache=CacheMode.USE, sampling=sampling))
    await gateway.pipeline.finish_errands()

    assert gateway.cache.answers == {}
    assert gateway.cache.num_look_ups == 0


async def test_aborted_answer_is_not_cached(gateway: Harness) -> None:
    gateway.silence()
    answer = await gateway.open(cache=CacheMode.USE, sampling=GREEDY)
    await gateway.pipeline.abort(gateway.queued.request_id)
    await gateway.read(answer)
    await gateway.pipeline.finish_errands()

    assert gateway.cache.answers == {}


async def test_metrics_count_requests_and_tokens(gateway: Harness) -> Any:
    gateway.silence()
    answer = await gateway.open()
    gateway.send([300], 0)
    await gateway.until(lambda: gateway.tokenizer.decode_calls != [])
    gateway.send([301, 302, 303, EOS], 1, FinishReason.STOP)
    await gateway.read(answer)

    def value(name: str, **labels: str) -> float | None:
        return gateway.registry.get_sample_value(name, {"model_name": "tiny", **labels})

    assert value("millrace_request_success_total", finished_reason="stop") == 1
    assert value("millrace_prompt_tokens_total") == 2
    assert value("millrace_generation_tokens_total") == 5
    assert value("millrace_requests_in_flight") == 0
    assert value("millrace_time_to_first_token_seconds_count") == 1
    assert value("millrace_inter_token_latency_seconds_count") == 1
