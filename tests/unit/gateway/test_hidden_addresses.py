"""Errors that clients see tell the reason; where our parts live stands in the log alone."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from millrace.core.errors import MillraceError, Unavailable
from millrace.core.idempotency import IdempotencyRecord
from millrace.internal.v1 import cache_pb2, cache_pb2_grpc
from millrace.rpc.client import open_channel
from millrace.rpc.server import RpcServer
from millrace.wire.idempotency_client import IdempotencyClient
from millrace.wire.scheduler_client import AttachStream
from millrace.wire.tokenizer_client import TokenizerClient
from millrace.wire.worker_client import ExecuteStream

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

ADDRESS = re.compile(r"\d+\.\d+\.\d+\.\d+|\[::|:\d{2,5}|ipv4|ipv6|unix:")
RECORD = IdempotencyRecord(b"h" * 32, "a" * 32, "g")


@pytest.fixture
async def nobody() -> AsyncIterator[grpc.aio.Channel]:
    """A channel to a port that nothing listens on."""
    channel = open_channel("127.0.0.1:1")
    yield channel
    await channel.close()


CALLS: dict[str, Callable[[grpc.aio.Channel], Awaitable[Any]]] = {
    "tokenizer": lambda channel: TokenizerClient([channel]).encode_text("m", "a"),
    "cache": lambda channel: IdempotencyClient(channel).claim(b"k" * 32, RECORD, 1.0),
    "scheduler": lambda channel: AttachStream.open(channel, "g"),
    "worker": lambda channel: ExecuteStream.open(channel, 1, "s"),
}


@pytest.mark.parametrize("part", CALLS)
async def test_a_part_that_is_away_is_told_without_its_address(
    nobody: grpc.aio.Channel, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(MillraceError) as caught:
        await CALLS[part](nobody)

    error = caught.value
    assert isinstance(error, Unavailable)
    assert not ADDRESS.search(error.message), error.message
    assert part in error.message
    if part != "scheduler":
        assert "127.0.0.1:1" in caplog.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/generate", {"prompt": "a", "stream": True}),
    ],
)
async def test_no_reply_has_the_address_of_the_tokenizer(
    gateway: Harness, nobody: grpc.aio.Channel, path: str, body: dict[str, Any]
) -> None:
    gateway.pipeline._tokenizer = TokenizerClient([nobody])
    async with gateway.client() as client:
        reply = await client.post(path, json=body)

    assert reply.status_code == 503
    assert reply.json()["error"]["message"] == "the tokenizer does not answer"


class NoRedis(cache_pb2_grpc.CacheServiceServicer):
    """A cache service whose Redis is away."""

    async def ClaimKey(self, request: Any, context: Any) -> cache_pb2.ClaimKeyResponse:
        raise Unavailable("Redis cannot be reached: connection refused")


async def test_a_key_that_cannot_be_looked_up_is_refused_with_the_reason(gateway: Harness) -> None:
    server = RpcServer("cache", "127.0.0.1", 0)
    name = "millrace.internal.v1.CacheService"
    # The other calls are not made.
    servicer = NoRedis()  # type: ignore[abstract]
    server.add(cache_pb2_grpc.add_CacheServiceServicer_to_server, servicer, name)
    channel = open_channel(await server.start())
    gateway.pipeline._keyed._records = IdempotencyClient(channel)
    async with gateway.client() as client:
        reply = await client.post("/generate", json={"prompt": "a", "idempotency_key": "k"})
    await channel.close()
    await server.stop(0)

    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (503, "idempotency_key")
    assert error["message"].endswith("Redis cannot be reached: connection refused")
    assert not ADDRESS.search(error["message"])
