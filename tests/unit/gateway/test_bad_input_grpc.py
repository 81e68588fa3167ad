"""Bad input over gRPC, by row of the table of bad inputs: code, reason, and nothing harmed.

Rows as in test_bad_input_http.py; B17 has no meaning here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from millrace.core.errors import Overloaded
from millrace.gateway.servicer import SERVICE_NAME, InferenceServicer
from millrace.rpc.client import open_channel
from millrace.rpc.server import RpcServer
from millrace.v1 import inference_pb2, inference_pb2_grpc, types_pb2

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

HI = [types_pb2.Message(role="user", content="hi")]
FAST_S = 3.0
INVALID = "INVALID_ARGUMENT"


@pytest.fixture
async def channel(gateway: Harness) -> AsyncIterator[grpc.aio.Channel]:
    server = RpcServer("gateway", "127.0.0.1", 0)
    servicer = InferenceServicer(gateway.pipeline, gateway.directory, max_batch_size=8)
    server.add(inference_pb2_grpc.add_InferenceServiceServicer_to_server, servicer, SERVICE_NAME)
    channel = open_channel(await server.start(), max_message_bytes=64 << 20)
    await channel.channel_ready()
    num_tasks = len(asyncio.all_tasks())
    yield channel
    # Whatever came in: no request lives, no task is left.
    assert gateway.pipeline.num_in_flight == 0
    await gateway.until(lambda: len(asyncio.all_tasks()) <= num_tasks)
    await channel.close()
    await server.stop(0)


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> Any:
    return inference_pb2_grpc.InferenceServiceStub(channel)


def sampled(**fields: Any) -> inference_pb2.ChatRequest:
    sampling = types_pb2.SamplingParams(**fields)
    return inference_pb2.ChatRequest(
        messages=HI, options=inference_pb2.RequestOptions(sampling=sampling)
    )


def optioned(**fields: Any) -> inference_pb2.ChatRequest:
    return inference_pb2.ChatRequest(messages=HI, options=inference_pb2.RequestOptions(**fields))


def tokens(*ids: int, **fields: Any) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(tokens=inference_pb2.TokenIds(ids=ids), **fields)


def text(prompt: str, **fields: Any) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(text=prompt, **fields)


def messages(count: int, **fields: Any) -> inference_pb2.ChatRequest:
    return inference_pb2.ChatRequest(messages=[types_pb2.Message(**fields)] * count)


CONTEXT = "CONTEXT_LENGTH_EXCEEDED"
WRONG = "INVALID_REQUEST"
# row, request, code, reason, field, words of the message
ROWS: list[tuple[str, Any, str, str, str | None, list[str]]] = [
    ("B2", inference_pb2.ChatRequest(), INVALID, WRONG, "messages", ["empty"]),
    ("B2", inference_pb2.GenerateRequest(), INVALID, WRONG, "prompt", []),
    ("B2", text(""), INVALID, WRONG, "prompt", ["empty"]),
    ("B2", tokens(), INVALID, WRONG, "prompt", ["empty"]),
    ("B3", text("a", model="nope"), "NOT_FOUND", "MODEL_NOT_FOUND", "model", ["nope", "tiny"]),
    ("B6", text("x" * 64), INVALID, CONTEXT, "prompt", ["64 tokens", "holds 64"]),
    ("B6", tokens(*[1] * 1_000_000), INVALID, CONTEXT, "prompt", ["1000000", "holds 64"]),
    ("B7", sampled(max_tokens=62), INVALID, CONTEXT, "max_tokens", ["3 tokens", "65", "64"]),
    ("B8", sampled(max_tokens=0), INVALID, WRONG, "max_tokens", ["0"]),
    ("B8", sampled(max_tokens=2**31), INVALID, WRONG, "max_tokens", [str(2**31)]),
    ("B9", sampled(temperature=-1), INVALID, WRONG, "temperature", ["-1"]),
    ("B9", sampled(temperature=3), INVALID, WRONG, "temperature", ["3", "0 to 2"]),
    ("B9", sampled(temperature=float("nan")), INVALID, WRONG, "temperature", ["nan"]),
    ("B9", sampled(temperature=float("inf")), INVALID, WRONG, "temperature", ["inf"]),
    ("B10", sampled(top_p=0), INVALID, WRONG, "top_p", ["0"]),
    ("B10", sampled(top_p=1.5), INVALID, WRONG, "top_p", ["1.5"]),
    ("B10", sampled(presence_penalty=2.5), INVALID, WRONG, "presence_penalty", ["2.5"]),
    ("B10", sampled(frequency_penalty=-2.5), INVALID, WRONG, "frequency_penalty", ["-2.5"]),
    ("B11", sampled(num_choices=0), INVALID, WRONG, "num_choices", ["0", "16"]),
    ("B11", sampled(num_choices=10**6), INVALID, WRONG, "num_choices", ["1000000", "16"]),
    ("B12", sampled(top_logprobs=21), INVALID, WRONG, "top_logprobs", ["21", "20"]),
    ("B13", sampled(stop=["a"] * 17), INVALID, WRONG, "stop", ["17", "16"]),
    ("B13", sampled(stop=[""]), INVALID, WRONG, "stop", ["0 characters"]),
    ("B13", sampled(stop=["x" * 2**20]), INVALID, WRONG, "stop", [str(2**20)]),
    ("B14", sampled(logit_bias={512: 1}), INVALID, WRONG, "logit_bias", ["512", "511"]),
    ("B14", sampled(logit_bias={1: 1e9}), INVALID, WRONG, "logit_bias", ["100"]),
    ("B14", sampled(logit_bias={1: -1e9}), INVALID, WRONG, "logit_bias", ["-100"]),
    ("B15", tokens(1, 512), INVALID, WRONG, "prompt", ["512", "511"]),
    ("B15", sampled(stop_token_ids=[512]), INVALID, WRONG, "stop_token_ids", ["512"]),
    (
        "B16",
        text("x" * (8 << 20)),
        "RESOURCE_EXHAUSTED",
        "PAYLOAD_TOO_LARGE",
        None,
        [str(8 << 20)],
    ),
    ("B22", optioned(priority=9), INVALID, WRONG, "priority", ["9"]),
    ("B22", optioned(cache=9), INVALID, WRONG, "cache", ["9"]),
    ("B26", optioned(timeout_ms=0), INVALID, WRONG, "timeout_ms", ["0"]),
    ("B28", messages(10**6), INVALID, WRONG, "messages", ["1000000", "4096"]),
    ("B28", messages(1, role="x" * 10**6), INVALID, WRONG, "messages[0].role", ["1000000"]),
    ("B28", sampled(stop=["a"] * 10**6), INVALID, WRONG, "stop", ["1000000"]),
]


def details_of(error: grpc.aio.AioRpcError) -> tuple[str, str, str | None, bool]:
    """Domain, reason, field and whether there is a time to retry after."""
    status = rpc_status.from_call(cast(Any, error))
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        for message in (info, request, retry):
            detail.Unpack(message)
    violations = request.field_violations
    field = violations[0].field if violations else None
    return info.domain, info.reason, field, retry.retry_delay.ToMilliseconds() >= 1000


async def refused(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            [event async for event in call]
        else:
            await call
    return caught.value


@pytest.mark.parametrize(
    ("row", "request_", "code", "reason", "field", "words"),
    ROWS,
    ids=[f"{number}-{each[0]}" for number, each in enumerate(ROWS)],
)
async def test_bad_input_is_refused_fast_and_not_published(
    gateway: Harness,
    stub: Any,
    row: str,
    request_: Any,
    code: str,
    reason: str,
    field: str | None,
    words: list[str],
) -> None:
    is_chat = isinstance(request_, inference_pb2.ChatRequest)
    started = time.perf_counter()
    error = await refused((stub.Chat if is_chat else stub.Generate)(request_))
    elapsed_s = time.perf_counter() - started

    assert error.code().name == code
    assert details_of(error)[:3] == ("millrace", reason, field)
    message = error.details() or ""
    assert all(word in message for word in words), message
    assert len(message) < 1000
    assert gateway.bus.published == []
    assert elapsed_s < FAST_S


async def test_b6_prompt_exactly_at_the_limit_works(gateway: Harness, stub: Any) -> None:
    for request in (text("x" * 63), tokens(*[1] * 63)):
        events = [event async for event in stub.Generate(request)]
        usage = events[-1].finished.usage
        assert (usage.num_prompt_tokens, usage.num_output_tokens) == (63, 1)


# B1: bytes that are no message. B18: text that is not UTF-8, and a lone surrogate.
@pytest.mark.parametrize("wire", [b"\xff\xff\xff", b"\x12\x02\xff\xfe", b"\x12\x03\xed\xa0\x80"])
async def test_b1_b18_what_cannot_be_decoded_is_refused(
    gateway: Harness, channel: grpc.aio.Channel, wire: bytes
) -> None:
    for call in (channel.unary_stream, channel.unary_unary):
        method = "Generate" if call == channel.unary_stream else "CountTokens"
        error = await refused(cast(Any, call)(f"/{SERVICE_NAME}/{method}")(wire))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert details_of(error)[:2] == ("millrace", WRONG)
    assert gateway.bus.published == []


async def test_b18_nul_bytes_go_round(gateway: Harness, stub: Any) -> None:
    gateway.reply = [0, 256]
    events = [event async for event in stub.Generate(text("a\x00b"))]
    assert gateway.queued.prompt_token_ids == [97, 0, 98]
    assert "".join(event.delta.text for event in events) == "\x00"


async def test_b23_unknown_call_is_unimplemented(channel: grpc.aio.Channel) -> None:
    error = await refused(cast(Any, channel.unary_unary(f"/{SERVICE_NAME}/Fly"))(b""))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_b24_full_queue_has_retry_info(gateway: Harness, stub: Any) -> None:
    gateway.bus.refusal = Overloaded("the intake queue is full", retry_after_s=1.0)
    error = await refused(stub.Generate(text("a")))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert details_of(error) == ("millrace", "OVERLOADED", None, True)


@pytest.mark.parametrize("cause", ["no worker", "draining"])
async def test_b25_no_worker_or_draining_is_unavailable(
    gateway: Harness, stub: Any, cause: str
) -> None:
    if cause == "draining":
        gateway.pipeline.start_draining()
    else:
        gateway.directory.on_detached("tiny")
    error = await refused(stub.Generate(text("a")))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert details_of(error)[1] == "UNAVAILABLE"
    assert details_of(error)[3]
    assert gateway.bus.published == []


async def test_b26_deadline_too_small_is_deadline_exceeded(gateway: Harness, stub: Any) -> None:
    gateway.silence()
    options = inference_pb2.RequestOptions(timeout_ms=1)
    own = await refused(stub.Generate(text("a", options=options)))
    of_the_call = await refused(stub.Generate(text("a"), timeout=0.05))
    assert own.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert of_the_call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await gateway.until(lambda: gateway.pipeline.num_in_flight == 0)


async def test_b27_same_key_with_another_body_already_exists(gateway: Harness, stub: Any) -> None:
    options = inference_pb2.RequestOptions(idempotency_key="order-66")
    [event async for event in stub.Generate(text("a", options=options))]
    error = await refused(stub.Generate(text("b", options=options)))
    assert error.code() is grpc.StatusCode.ALREADY_EXISTS
    assert details_of(error)[:3] == ("millrace", "CONFLICT", "idempotency_key")
    await gateway.pipeline.finish_errands()


async def test_b28_huge_batch_is_refused(gateway: Harness, stub: Any) -> None:
    request = inference_pb2.GenerateBatchRequest(requests=[text("a")] * 100_000)
    error = await refused(stub.GenerateBatch(request))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "100000" in (error.details() or "")


async def test_b29_huge_metadata_is_refused_and_bad_traceparent_ignored(
    gateway: Harness, stub: Any
) -> None:
    error = await refused(stub.Generate(text("a"), metadata=(("x-a", "a" * (64 << 10)),)))
    assert error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL)
    assert gateway.bus.published == []

    events = [
        event async for event in stub.Generate(text("a"), metadata=(("traceparent", "00-zz"),))
    ]
    assert events[-1].WhichOneof("event") == "finished"


async def test_b30_abort_is_idempotent(gateway: Harness, stub: Any) -> None:
    events = [event async for event in stub.Generate(text("a"))]
    for request_id in ("f" * 32, events[0].started.request_id):
        reply = await stub.Abort(inference_pb2.AbortRequest(request_id=request_id))
        assert not reply.was_live
    for wrong in ("", "x" * 32, "f" * 31, "f" * 10_000):
        error = await refused(stub.Abort(inference_pb2.AbortRequest(request_id=wrong)))
        assert details_of(error)[:3] == ("millrace", WRONG, "request_id")
        assert len(error.details() or "") < 200
