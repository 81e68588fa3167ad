"""Pings of idle streams: from admission on, between events, and seen by no client as an event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import openai
import pytest
from starlette.types import Message

from millrace.core.errors import Overloaded
from millrace.core.tokens import FinishReason
from millrace.gateway.config import GatewayConfig
from millrace.gateway.http.app import create_app
from millrace.gateway.http.sse import EventStream
from tests.unit.gateway.conftest import EOS
from tests.unit.gateway.raw_client import Address, RawClient, one, served

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

PATHS = ["/v1/chat/completions", "/v1/completions", "/generate"]
WORDS = [300, 301, 302, 303]


def ask(path: str) -> bytes:
    what = {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": "hi"}
    body = json.dumps({**what, "stream": True}).encode()
    return (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        + body
    )


@pytest.fixture
async def address(gateway: Harness) -> AsyncIterator[Address]:
    """Of a gateway that pings every 10 ms."""
    gateway.silence()
    async with served(create_app(replace(gateway.edge, ping_interval_s=0.01))) as address:
        yield address


async def say_slowly(gateway: Harness) -> None:
    """Each token after some pings."""
    await gateway.until(lambda: len(gateway.bus.published) == 1)
    for place, token_id in enumerate(WORDS):
        await asyncio.sleep(0.03)
        gateway.send([token_id], place)
    gateway.send([EOS], len(WORDS), FinishReason.STOP)


def events_of(stream: str) -> list[str]:
    """As a page's EventSource reads it: "interpreting an event stream" of the HTML standard."""
    events: list[str] = []
    data: list[str] = []
    for line in stream.split("\n"):
        field, _, value = line.partition(":")
        if not line and data:
            events.append("\n".join(data))
            data = []
        elif field == "data":
            data.append(value.removeprefix(" "))
    return events


@pytest.mark.parametrize("path", PATHS)
async def test_ping_comes_while_the_request_waits(
    gateway: Harness, address: Address, path: str
) -> None:
    async with RawClient.connect(address) as client:
        await client.send(ask(path))
        assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        for _ in range(3):
            await client.until(b": ping\n")
    assert len(gateway.bus.published) == 1


@pytest.mark.parametrize("path", PATHS)
async def test_refusal_before_admission_is_a_status(
    gateway: Harness, address: Address, path: str
) -> None:
    gateway.bus.refusal = Overloaded("the intake queue is full", retry_after_s=1.0)
    assert (await one(address, ask(path))).status == 429


@pytest.mark.parametrize("path", PATHS)
async def test_ping_is_a_line_of_its_own_between_events(
    gateway: Harness, address: Address, path: str
) -> None:
    saying = asyncio.create_task(say_slowly(gateway))
    body = (await one_stream(address, ask(path))).decode()
    await saying
    lines = body.split("\n")
    # An event is one line and an empty one; nothing else is empty but the end.
    assert body.count(": ping\n") > 3
    assert lines.count("") == body.count("data: ") + 1
    assert {line for line in lines if line and not line.startswith("data: ")} == {": ping"}
    assert events_of(body) == events_of(body.replace(": ping\n", ""))
    assert events_of(body)[-1] == "[DONE]"
    assert "world" in body


async def one_stream(address: Address, sent: bytes) -> bytes:
    async with RawClient.connect(address) as client:
        await client.send(sent)
        received = await client.rest()
    # Without its chunks: each is one write.
    body, rest = b"", received.partition(b"\r\n\r\n")[2]
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body


async def test_official_client_does_not_see_pings(gateway: Harness, address: Address) -> None:
    messages: Any = [{"role": "user", "content": "hi"}]
    url = f"http://{address[0]}:{address[1]}/v1"
    async with openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=0) as client:
        saying = asyncio.create_task(say_slowly(gateway))
        stream = await client.chat.completions.create(model="tiny", messages=messages, stream=True)
        chunks = [chunk async for chunk in stream]
        await saying
    assert all(len(chunk.choices) == 1 for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello, world!"


def test_pings_are_on_by_default() -> None:
    """Often enough for proxies, which give up after 30 s or more."""
    assert 0 < GatewayConfig().ping_interval_s <= 15


async def test_ping_waits_for_the_head() -> None:
    """The head may wait long, behind a reply that the client does not take."""
    sent: list[Message] = []
    head_may_go = asyncio.Event()

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            await head_may_go.wait()
        sent.append(message)

    async def receive() -> Message:
        return await asyncio.Future()

    async def chunks() -> AsyncIterator[bytes]:
        await asyncio.sleep(0.05)
        yield b"data: [DONE]\n\n"

    stream = EventStream(chunks(), lambda reason: None, ping_interval_s=0.01, write_timeout_s=5.0)
    replying = asyncio.create_task(stream({"type": "http", "extensions": {}}, receive, send))
    await asyncio.sleep(0.05)
    assert sent == []
    head_may_go.set()
    await replying
    assert [message["type"] for message in sent[:1]] == ["http.response.start"]
    assert b": ping\n" in [message.get("body") for message in sent[1:-1]]
