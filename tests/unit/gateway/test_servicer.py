"""The gRPC edge over a real channel."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from millrace.core.encoded_prompt import EncodedPrompt
from millrace.core.errors import Overloaded
from millrace.core.tokens import FinishReason
from millrace.gateway.servicer import SERVICE_NAME, InferenceServicer
from millrace.rpc.client import open_channel
from millrace.rpc.server import RpcServer
from millrace.v1 import inference_pb2, inference_pb2_grpc, types_pb2

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

EOS = 256
HI = [types_pb2.Message(role="user", content="hi")]


@pytest.fixture
async def stub(gateway: Harness) -> Any:
    server = RpcServer("gateway", "127.0.0.1", 0)
    servicer = InferenceServicer(gateway.pipeline, gateway.directory, max_batch_size=8)
    server.add(inference_pb2_grpc.add_InferenceServiceServicer_to_server, servicer, SERVICE_NAME)
    channel = open_channel(await server.start())
    yield inference_pb2_grpc.InferenceServiceStub(channel)
    await channel.close()
    await server.stop(0)


def options(**fields: Any) -> inference_pb2.RequestOptions:
    sampling = types_pb2.SamplingParams(**fields.pop("sampling", {}))
    return inference_pb2.RequestOptions(sampling=sampling, **fields)


async def test_chat_streams_started_deltas_finished(gateway: Harness, stub: Any) -> None:
    call = stub.Chat(
        inference_pb2.ChatRequest(messages=HI, options=options(sampling={"seed": 2**63 + 1}))
    )
    events = [event async for event in call]

    kinds = [event.WhichOneof("event") for event in events]
    assert (kinds[0], kinds[-1]) == ("started", "finished")
    assert set(kinds[1:-1]) == {"delta"}
    started, finished = events[0].started, events[-1].finished
    assert (started.model, started.num_prompt_tokens, started.seed) == ("tiny", 3, 2**63 + 1)
    assert "".join(event.delta.text for event in events) == "Hello, world!"
    assert finished.choices[0].finish_reason == types_pb2.FINISH_REASON_STOP
    assert not finished.choices[0].HasField("matched_stop")
    assert finished.usage.num_output_tokens == 5
    assert finished.timings.total_ns > 0
    metadata = dict(await call.initial_metadata())
    assert metadata["x-request-id"] == started.request_id == gateway.queued.request_id
    assert metadata["traceresponse"].startswith("00-")


async def test_generate_takes_token_ids_and_every_option(gateway: Harness, stub: Any) -> None:
    request = inference_pb2.GenerateRequest(
        tokens=inference_pb2.TokenIds(ids=[1, 2]),
        options=options(
            sampling={
                "max_tokens": 2,
                "temperature": 0.0,
                "top_p": 0.5,
                "logit_bias": {3: 1.5},
                "stop_token_ids": [7],
                "stop": ["x"],
                "top_logprobs": 1,
            },
            priority=types_pb2.PRIORITY_LOW,
            timeout_ms=1000,
        ),
    )
    events = [event async for event in stub.Generate(request)]

    queued = gateway.queued
    assert queued.prompt_token_ids == [1, 2]
    assert (queued.sampling.temperature, queued.sampling.top_p) == (0.0, 0.5)
    assert queued.sampling.logit_bias == ((3, 1.5),)
    assert (queued.stop_token_ids, queued.max_tokens) == ((EOS, 7), 2)
    assert queued.priority.name == "LOW"
    positions = [p for event in events for p in event.delta.logprobs]
    assert positions[0].chosen.raw == b"Hello"
    assert positions[0].top[0].logprob == -0.5
    assert events[-1].finished.choices[0].finish_reason == types_pb2.FINISH_REASON_LENGTH


@pytest.mark.parametrize(
    ("request_fields", "code", "reason", "field"),
    [
        ({"model": "nope"}, "NOT_FOUND", "MODEL_NOT_FOUND", "model"),
        ({"messages": []}, "INVALID_ARGUMENT", "INVALID_REQUEST", "messages"),
        (
            {"options": {"sampling": {"max_tokens": 0}}},
            "INVALID_ARGUMENT",
            "INVALID_REQUEST",
            "max_tokens",
        ),
        (
            {"options": {"sampling": {"temperature": float("nan")}}},
            "INVALID_ARGUMENT",
            "INVALID_REQUEST",
            "temperature",
        ),
        (
            {"options": {"sampling": {"max_tokens": 100}}},
            "INVALID_ARGUMENT",
            "CONTEXT_LENGTH_EXCEEDED",
            "max_tokens",
        ),
        (
            {"options": {"sampling": {"num_choices": 99}}},
            "INVALID_ARGUMENT",
            "INVALID_REQUEST",
            "num_choices",
        ),
        (
            {"options": {"sampling": {"logit_bias": {700: 1.0}}}},
            "INVALID_ARGUMENT",
            "INVALID_REQUEST",
            "logit_bias",
        ),
        (
            {"options": {"idempotency_key": "k" * 129}},
            "INVALID_ARGUMENT",
            "INVALID_REQUEST",
            "idempotency_key",
        ),
        ({"options": {"timeout_ms": 0}}, "INVALID_ARGUMENT", "INVALID_REQUEST", "timeout_ms"),
        ({"options": {"priority": 9}}, "INVALID_ARGUMENT", "INVALID_REQUEST", "priority"),
        ({"options": {"cache": 9}}, "INVALID_ARGUMENT", "INVALID_REQUEST", "cache"),
    ],
)
async def test_refusals_have_status_reason_and_field(
    stub: Any, request_fields: dict[str, Any], code: str, reason: str, field: str
) -> None:
    fields = {"messages": HI, **request_fields}
    if "options" in fields:
        fields["options"] = options(**fields["options"])
    call = stub.Chat(inference_pb2.ChatRequest(**fields))

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [event async for event in call]

    assert caught.value.code().name == code
    status = rpc_status.from_call(cast(Any, caught.value))
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(request)
    assert (info.reason, info.domain) == (reason, "millrace")
    assert request.field_violations[0].field == field
    assert "x-request-id" in dict(await call.initial_metadata())


async def test_key_with_another_body_is_already_exists(gateway: Harness, stub: Any) -> None:
    request = inference_pb2.ChatRequest(messages=HI, options=options(idempotency_key="secret-key"))
    whole = [event async for event in stub.Chat(request)]
    again = [event async for event in stub.Chat(request)]
    request.messages[0].content = "other"

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [event async for event in stub.Chat(request)]

    assert [whole[-1].finished.cached, again[-1].finished.cached] == [False, True]
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert "secr" in (caught.value.details() or "")
    assert "secret" not in (caught.value.details() or "")


async def test_full_queue_is_resource_exhausted(gateway: Harness, stub: Any) -> None:
    gateway.bus.refusal = Overloaded("the queue is full", retry_after_s=2.0)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [event async for event in stub.Chat(inference_pb2.ChatRequest(messages=HI))]

    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_cancelled_call_aborts_the_request(gateway: Harness, stub: Any) -> None:
    gateway.silence()
    call = stub.Chat(inference_pb2.ChatRequest(messages=HI))
    assert (await call.read()).WhichOneof("event") == "started"

    call.cancel()

    await gateway.until(lambda: gateway.stream.told("abort") != [])
    assert gateway.stream.told("abort") == [("abort", gateway.queued.request_id, "client")]
    await gateway.until(lambda: gateway.pipeline.num_in_flight == 0)


async def test_deadline_of_the_call_aborts_the_request(gateway: Harness, stub: Any) -> None:
    gateway.silence()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [e async for e in stub.Chat(inference_pb2.ChatRequest(messages=HI), timeout=0.2)]

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await gateway.until(lambda: gateway.stream.told("abort") != [])


async def test_abort_ends_the_stream_with_abort(gateway: Harness, stub: Any) -> None:
    gateway.silence()
    call = stub.Chat(inference_pb2.ChatRequest(messages=HI))
    request_id = (await call.read()).started.request_id

    first = await stub.Abort(inference_pb2.AbortRequest(request_id=request_id))
    finished = (await call.read()).finished
    second = await stub.Abort(inference_pb2.AbortRequest(request_id=request_id))

    assert (first.was_live, second.was_live) == (True, False)
    assert finished.choices[0].finish_reason == types_pb2.FINISH_REASON_ABORT


async def test_abort_needs_an_id(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Abort(inference_pb2.AbortRequest(request_id="x"))

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_error_of_the_scheduler_ends_the_stream(gateway: Harness, stub: Any) -> None:
    gateway.silence()
    call = stub.Chat(inference_pb2.ChatRequest(messages=HI))
    await call.read()
    gateway.send([], 0, FinishReason.ERROR)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()

    assert caught.value.code() is grpc.StatusCode.INTERNAL


async def test_slow_reader_does_not_stop_other_calls(gateway: Harness, stub: Any) -> None:
    slow = stub.Chat(inference_pb2.ChatRequest(messages=HI))
    await slow.read()

    other = [event async for event in stub.Chat(inference_pb2.ChatRequest(messages=HI))]

    assert other[-1].WhichOneof("event") == "finished"
    slow.cancel()


async def test_batch_gives_results_and_errors_by_index(gateway: Harness, stub: Any) -> None:
    requests = [
        inference_pb2.GenerateRequest(text="a"),
        inference_pb2.GenerateRequest(),
        inference_pb2.GenerateRequest(text="b", options=options(sampling={"max_tokens": 1})),
    ]
    call = stub.GenerateBatch(inference_pb2.GenerateBatchRequest(requests=requests))

    results = {response.index: response async for response in call}

    assert results[0].result.texts == ["Hello, world!"]
    assert results[2].result.texts == ["Hello"]
    assert results[1].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert results[1].error.reason == "INVALID_REQUEST"
    assert results[0].result.request_id != results[2].result.request_id


async def test_batch_over_the_limit_is_refused(stub: Any) -> None:
    requests = [inference_pb2.GenerateRequest(text="a")] * 9

    with pytest.raises(grpc.aio.AioRpcError, match="9 entries"):
        [e async for e in stub.GenerateBatch(inference_pb2.GenerateBatchRequest(requests=requests))]


async def test_cancelled_batch_aborts_its_requests(gateway: Harness, stub: Any) -> None:
    gateway.silence()
    requests = [inference_pb2.GenerateRequest(text="a")] * 2
    call = stub.GenerateBatch(inference_pb2.GenerateBatchRequest(requests=requests))
    reading = asyncio.create_task(call.read())
    await gateway.until(lambda: len(gateway.bus.published) == 2)

    call.cancel()

    await gateway.until(lambda: len(gateway.stream.told("abort")) == 2)
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_ids_of_counted_tokens_come_if_they_are_wanted_or_fit(
    gateway: Harness, stub: Any
) -> None:
    ids = [511] * 2_200_000

    async def encode_text(model: str, text: str, *, max_ids: int | None = None) -> EncodedPrompt:
        encoded = ids if text == "long" else [5, 6]
        is_wanted = max_ids is None or len(encoded) <= max_ids
        return EncodedPrompt(len(encoded), encoded if is_wanted else None)

    gateway.tokenizer.encode_text = encode_text  # type: ignore[method-assign]

    async def count(text: str, **fields: Any) -> tuple[int, int]:
        answer = await stub.CountTokens(inference_pb2.CountTokensRequest(text=text, **fields))
        return answer.num_tokens, len(answer.token_ids)

    assert await count("short") == (2, 2)
    assert await count("short", with_token_ids=True) == (2, 2)
    assert await count("short", with_token_ids=False) == (2, 0)
    # A client with default settings takes 4 MiB.
    assert await count("long") == (len(ids), 0)
    assert await count("long", with_token_ids=False) == (len(ids), 0)


async def test_count_tokens(stub: Any) -> None:
    text = await stub.CountTokens(inference_pb2.CountTokensRequest(text="abc"))
    conversation = inference_pb2.Conversation(messages=HI)
    chat = await stub.CountTokens(inference_pb2.CountTokensRequest(conversation=conversation))

    assert (text.num_tokens, list(text.token_ids)) == (3, [97, 98, 99])
    assert chat.num_tokens == 3


async def test_models_are_described(stub: Any) -> None:
    models = (await stub.ListModels(inference_pb2.ListModelsRequest())).models
    model = (await stub.GetModel(inference_pb2.GetModelRequest(name="small"))).model

    assert [each.name for each in models] == ["tiny"]
    assert (model.num_workers, model.num_parameters, model.max_model_len) == (1, 1000, 64)


async def test_get_model_takes_both_names_of_its_field(stub: Any) -> None:
    for fields in ({}, {"name": "small"}, {"model": "small"}, {"name": "tiny", "model": "tiny"}):
        reply = await stub.GetModel(inference_pb2.GetModelRequest(**fields))
        assert reply.model.name == "tiny"

    with pytest.raises(grpc.aio.AioRpcError, match="give one of them") as caught:
        await stub.GetModel(inference_pb2.GetModelRequest(name="tiny", model="small"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("method", ["Generate", "Chat", "GenerateBatch"])
async def test_fields_of_a_newer_client_are_told_by_number(
    gateway: Harness, stub: Any, method: str
) -> None:
    # Fields 111 (a number) and 112 (bytes), which no message of this release has.
    newer = b"\xf8\x06\x05\x82\x07\x01a"
    sampling = types_pb2.SamplingParams.FromString(newer)
    request = inference_pb2.GenerateRequest(
        text="hi", options=inference_pb2.RequestOptions(sampling=sampling)
    )
    asked: Any = request
    if method == "Chat":
        asked = inference_pb2.ChatRequest(messages=HI, options=request.options)
    elif method == "GenerateBatch":
        asked = inference_pb2.GenerateBatchRequest(requests=[request])
    call = getattr(stub, method)(asked)
    [event async for event in call]

    metadata = dict(await call.initial_metadata())
    assert metadata["millrace-ignored-fields"] == "SamplingParams.111, SamplingParams.112"
    unknown = ("millrace_request_ignored_fields_total", {"kind": "unknown"})
    assert gateway.registry.get_sample_value(*unknown) == 2


async def test_request_with_known_fields_alone_tells_nothing(stub: Any) -> None:
    call = stub.Generate(inference_pb2.GenerateRequest(text="hi"))
    [event async for event in call]
    assert "millrace-ignored-fields" not in dict(await call.initial_metadata())


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"stop": ["a", ""]}, "stop[1] has 0 characters"),
        ({"stop_token_ids": [1, 512]}, "stop_token_ids[1] is 512"),
        ({"logit_bias": {600: 1.0}}, "logit_bias has the key 600"),
        ({"logit_bias": {5: 101.0}}, "logit_bias[5] is 101"),
        ({"num_choices": 17}, "num_choices is 17; allowed is 1 to 16"),
    ],
)
async def test_errors_name_the_entry(stub: Any, sampling: dict[str, Any], words: str) -> None:
    request = inference_pb2.GenerateRequest(text="hi", options=options(sampling=sampling))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [event async for event in stub.Generate(request)]
    assert words in (caught.value.details() or "")


async def test_abort_by_the_id_of_a_batch_ends_all_of_it(gateway: Harness, stub: Any) -> None:
    gateway.silence()
    requests = [inference_pb2.GenerateRequest(text="a")] * 3
    call = stub.GenerateBatch(inference_pb2.GenerateBatchRequest(requests=requests))
    request_id = dict(await call.initial_metadata())["x-request-id"]
    await gateway.until(lambda: len(gateway.bus.published) == 3)
    await gateway.until(lambda: gateway.pipeline._opening == {})

    reply = await stub.Abort(inference_pb2.AbortRequest(request_id=request_id))
    outcomes = [outcome async for outcome in call]

    assert reply.was_live
    assert len(outcomes) == 3
    reasons = [each.result.finished.choices[0].finish_reason for each in outcomes]
    assert reasons == [types_pb2.FINISH_REASON_ABORT] * 3
    again = await stub.Abort(inference_pb2.AbortRequest(request_id=request_id))
    assert not again.was_live
