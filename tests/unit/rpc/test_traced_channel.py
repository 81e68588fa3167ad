"""Spans of unary calls, at both ends of a real gRPC connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest
from opentelemetry import trace

from millrace.core.errors import Overloaded
from millrace.internal.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from millrace.rpc.client import open_channel
from millrace.rpc.server import RpcServer
from millrace.telemetry.names import ATTR_RPC_STATUS_CODE
from millrace.telemetry.span_record import SpanRecord
from millrace.testing.span_recorder import SpanRecorder

NAME = "millrace.internal.v1.TokenizerService"
ENCODE = f"{NAME}/Encode"
WAIT_S = 5.0


class _Servicer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    def __init__(self) -> None:
        self.has_begun = asyncio.Event()
        self.metadata: dict[str, Any] = {}

    async def Encode(self, request: Any, context: Any) -> Any:
        self.metadata = dict(context.invocation_metadata())
        self.has_begun.set()
        if request.text == "full":
            raise Overloaded("no room")
        if request.text == "for ever":
            await asyncio.Event().wait()
        return tokenizer_pb2.EncodeResponse(token_ids=[1])

    async def Decode(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        async for _ in request_iterator:
            yield tokenizer_pb2.DecodeResponse()

    async def GetPieces(self, request: Any, context: Any) -> Any:
        return tokenizer_pb2.GetPiecesResponse()

    async def GetTokenizer(self, request: Any, context: Any) -> Any:
        return tokenizer_pb2.GetTokenizerResponse()


@pytest.fixture
def recorder() -> Iterator[SpanRecorder]:
    made = SpanRecorder()
    made.install("tokenizer")
    yield made
    made.clear()


@pytest.fixture
async def servicer() -> _Servicer:
    return _Servicer()


@pytest.fixture
async def stub(
    servicer: _Servicer, recorder: SpanRecorder
) -> AsyncIterator[tokenizer_pb2_grpc.TokenizerServiceAsyncStub]:
    server = RpcServer("tokenizer", "127.0.0.1", 0)
    server.add(tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server, servicer, NAME)
    async with open_channel(await server.start()) as channel:
        yield tokenizer_pb2_grpc.TokenizerServiceStub(channel)
    await server.stop(0)


async def _spans(recorder: SpanRecorder, count: int) -> list[SpanRecord]:
    async with asyncio.timeout(WAIT_S):
        while len(recorder.spans()) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return recorder.spans()


async def test_call_inside_a_trace_is_a_span_at_both_ends(
    stub: Any, recorder: SpanRecorder
) -> None:
    with trace.get_tracer(__name__).start_as_current_span("request"):
        await stub.Encode(tokenizer_pb2.EncodeRequest(text="x"), timeout=WAIT_S)
    spans = await _spans(recorder, 3)
    (request,) = (span for span in spans if span.name == "request")
    client, server = sorted(
        (span for span in spans if span.name == ENCODE), key=lambda span: span.start_ns
    )
    assert (client.parent_id, server.parent_id) == (request.span_id, client.span_id)
    assert client.attributes[ATTR_RPC_STATUS_CODE] == "OK"
    assert client.start_ns <= server.start_ns <= server.end_ns <= client.end_ns


async def test_call_outside_of_a_trace_is_none(
    stub: Any, servicer: _Servicer, recorder: SpanRecorder
) -> None:
    metadata = (("key", "value"),)
    await stub.Encode(tokenizer_pb2.EncodeRequest(text="x"), timeout=WAIT_S, metadata=metadata)
    assert servicer.metadata["key"] == "value"
    assert "traceparent" not in servicer.metadata
    assert recorder.spans() == []


async def test_metadata_of_the_caller_goes_along(stub: Any, servicer: _Servicer) -> None:
    with trace.get_tracer(__name__).start_as_current_span("request"):
        await stub.Encode(tokenizer_pb2.EncodeRequest(text="x"), metadata=(("key", "value"),))
    assert servicer.metadata["key"] == "value"
    assert "traceparent" in servicer.metadata


async def test_failed_call_s_span_tells_the_status(stub: Any, recorder: SpanRecorder) -> None:
    tracer = trace.get_tracer(__name__)
    with tracer.start_as_current_span("request"), pytest.raises(grpc.aio.AioRpcError):
        await stub.Encode(tokenizer_pb2.EncodeRequest(text="full"), timeout=WAIT_S)
    spans = await _spans(recorder, 3)
    codes = [span.attributes.get(ATTR_RPC_STATUS_CODE) for span in spans if span.name == ENCODE]
    assert "RESOURCE_EXHAUSTED" in codes


async def test_cancelled_call_s_span_ends(
    stub: Any, servicer: _Servicer, recorder: SpanRecorder
) -> None:
    async def call() -> None:
        with trace.get_tracer(__name__).start_as_current_span("request"):
            await stub.Encode(tokenizer_pb2.EncodeRequest(text="for ever"), timeout=WAIT_S)

    calling = asyncio.create_task(call())
    async with asyncio.timeout(WAIT_S):
        await servicer.has_begun.wait()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    spans = await _spans(recorder, 3)
    codes = [span.attributes.get(ATTR_RPC_STATUS_CODE) for span in spans if span.name == ENCODE]
    assert "CANCELLED" in codes
