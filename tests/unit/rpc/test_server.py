"""Errors and trace context across a real gRPC connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from millrace.core.errors import ConfigError, Overloaded
from millrace.internal.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from millrace.rpc.client import open_channel
from millrace.rpc.server import RpcServer
from millrace.wire.status import error_from_rpc

NAME = "millrace.internal.v1.TokenizerService"


class _Servicer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    async def Encode(self, request: Any, context: Any) -> Any:
        if request.text == "full":
            raise Overloaded("no room", retry_after_s=2.0)
        if request.text == "defect":
            raise KeyError("secret detail")
        return tokenizer_pb2.EncodeResponse(token_ids=[len(request.text)])

    async def Decode(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        async for request in request_iterator:
            if not request.new_ids:
                raise Overloaded("no room")
            yield tokenizer_pb2.DecodeResponse(texts=["x"])

    async def GetPieces(self, request: Any, context: Any) -> Any:
        return tokenizer_pb2.GetPiecesResponse()

    async def GetTokenizer(self, request: Any, context: Any) -> Any:
        return tokenizer_pb2.GetTokenizerResponse()


@pytest.fixture
async def stub() -> AsyncIterator[tokenizer_pb2_grpc.TokenizerServiceAsyncStub]:
    server = RpcServer("tokenizer", "127.0.0.1", 0)
    server.add(tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server, _Servicer(), NAME)
    channel = open_channel(await server.start())
    yield tokenizer_pb2_grpc.TokenizerServiceStub(channel)
    await channel.close()
    await server.stop(0)


async def test_error_reaches_the_caller_as_itself(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Encode(tokenizer_pb2.EncodeRequest(text="full"))
    error = error_from_rpc(caught.value)
    assert isinstance(error, Overloaded)
    assert (error.message, error.retry_after_s) == ("no room", 2.0)


async def test_defect_is_logged_and_leaks_nothing(
    stub: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Encode(tokenizer_pb2.EncodeRequest(text="defect"))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value.details())
    assert "secret detail" in caplog.text


async def test_error_ends_a_stream_after_its_messages(stub: Any) -> None:
    call = stub.Decode()
    await call.write(tokenizer_pb2.DecodeRequest(new_ids=[1]))
    assert (await call.read()).texts == ["x"]
    await call.write(tokenizer_pb2.DecodeRequest())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert isinstance(error_from_rpc(caught.value), Overloaded)


async def test_health_follows_the_life_of_the_server() -> None:
    server = RpcServer("tokenizer", "127.0.0.1", 0)
    server.add(tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server, _Servicer(), NAME)
    channel = open_channel(await server.start())
    health: Any = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=NAME)
    serving = await health.Check(request)
    await server.set_serving(False)
    not_serving = await health.Check(request)
    await channel.close()
    await server.stop(0)
    assert serving.status == health_pb2.HealthCheckResponse.SERVING
    assert not_serving.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_taken_port_is_a_config_error() -> None:
    server = RpcServer("a", "127.0.0.1", 0)
    port = int((await server.start()).rsplit(":", 1)[1])
    with pytest.raises(ConfigError, match=str(port)):
        await RpcServer("b", "127.0.0.1", port).start()
    await server.stop(0)


async def test_cancelled_call_ends_as_cancelled(stub: Any) -> None:
    call = stub.Encode(tokenizer_pb2.EncodeRequest(text="x"))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_health_can_be_watched() -> None:
    server = RpcServer("tokenizer", "127.0.0.1", 0)
    server.add(tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server, _Servicer(), NAME)
    channel = open_channel(await server.start())
    watch: Any = health_pb2_grpc.HealthStub(channel)
    watching = watch.Watch(health_pb2.HealthCheckRequest(service=NAME))
    seen = [(await watching.read()).status]
    await server.set_serving(False)
    seen.append((await watching.read()).status)
    await channel.close()
    await server.stop(0)
    assert seen == [
        health_pb2.HealthCheckResponse.SERVING,
        health_pb2.HealthCheckResponse.NOT_SERVING,
    ]


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "127.0.0.1:"), ("::1", "[::1]:"), ("[::1]", "[::1]:"), ("localhost", "local")],
)
async def test_every_loopback_can_be_listened_on(host: str, shown: str) -> None:
    server = RpcServer("tokenizer", host, 0)
    address = await server.start()
    channel = open_channel(address)
    health: Any = health_pb2_grpc.HealthStub(channel)
    await health.Check(health_pb2.HealthCheckRequest(), timeout=10)
    await channel.close()
    await server.stop(0)

    assert address.startswith(shown)


async def test_health_says_nothing_good_before_it_is_told_to() -> None:
    server = RpcServer("tokenizer", "127.0.0.1", 0)
    server.add(tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server, _Servicer(), NAME)
    channel = open_channel(await server.start(is_serving=False))
    health: Any = health_pb2_grpc.HealthStub(channel)
    before = [
        (await health.Check(health_pb2.HealthCheckRequest(service=name))).status
        for name in ("", NAME)
    ]
    await server.set_serving(True)
    after = (await health.Check(health_pb2.HealthCheckRequest())).status
    await channel.close()
    await server.stop(0)

    assert before == [health_pb2.HealthCheckResponse.NOT_SERVING] * 2
    assert after == health_pb2.HealthCheckResponse.SERVING
