"""The official Python client against the real HTTP server on a loopback port."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest

from millrace.core.errors import Unavailable
from millrace.core.tokens import FinishReason
from millrace.gateway.http.app import create_app
from millrace.gateway.http.server import HttpServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.unit.gateway.conftest import Harness

HI: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def client(gateway: Harness) -> AsyncIterator[openai.AsyncOpenAI]:
    server = HttpServer(create_app(gateway.edge), "127.0.0.1", 0)
    address = await server.start()
    async with openai.AsyncOpenAI(
        api_key="none", base_url=f"http://{address}/v1", max_retries=0, timeout=10
    ) as client:
        yield client
    await server.stop(0)


async def test_chat_whole(client: Any) -> None:
    reply = await client.chat.completions.create(model="tiny", messages=HI, n=2)

    assert [choice.message.content for choice in reply.choices] == ["Hello, world!"] * 2
    assert reply.usage.completion_tokens == 10
    assert reply.id == f"chatcmpl-{reply._request_id}"


async def test_chat_streamed(client: Any) -> None:
    stream = await client.chat.completions.create(
        model="tiny", messages=HI, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Hello, world!"
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 8


async def test_chat_logprobs(client: Any) -> None:
    reply = await client.chat.completions.create(
        model="tiny", messages=HI, logprobs=True, top_logprobs=1
    )

    assert reply.choices[0].logprobs.content[0].token == "Hello"


async def test_completion_whole_and_streamed(client: Any) -> None:
    reply = await client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=2)
    stream = await client.completions.create(model="tiny", prompt="a", stream=True)
    text = "".join([chunk.choices[0].text async for chunk in stream])

    assert [choice.text for choice in reply.choices] == ["Hello, "] * 2
    assert reply.choices[0].finish_reason == "length"
    assert text == "Hello, world!"


async def test_models(client: Any) -> None:
    assert [model.id async for model in client.models.list()] == ["tiny"]
    assert (await client.models.retrieve("small")).id == "tiny"


async def test_errors_become_typed_exceptions(gateway: Harness, client: Any) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="nope", messages=HI)
    with pytest.raises(openai.BadRequestError) as wrong:
        await client.chat.completions.create(model="tiny", messages=HI, temperature=9)
    gateway.bus.refusal = Unavailable("no queue", retry_after_s=1.0)
    with pytest.raises(openai.InternalServerError) as gone:
        await client.chat.completions.create(model="tiny", messages=HI)

    assert missing.value.code == "model_not_found"
    assert wrong.value.param == "temperature"
    assert gone.value.status_code == 503
    assert wrong.value.request_id


async def test_error_in_the_middle_of_a_stream_raises(gateway: Harness, client: Any) -> None:
    gateway.silence()
    stream = await client.chat.completions.create(model="tiny", messages=HI, stream=True)
    gateway.send([], 0, FinishReason.ERROR)

    with pytest.raises(openai.APIError, match="failed while it ran"):
        [chunk async for chunk in stream]


async def test_closed_stream_aborts_the_request(gateway: Harness, client: Any) -> None:
    gateway.silence()
    stream = await client.chat.completions.create(model="tiny", messages=HI, stream=True)
    gateway.send([300], 0)
    async for chunk in stream:
        if chunk.choices[0].delta.content:
            break

    await stream.close()

    await gateway.until(lambda: gateway.stream.told("abort") != [])
    assert gateway.stream.told("abort") == [("abort", gateway.queued.request_id, "client")]


async def test_busy_port_names_the_flag(gateway: Harness) -> None:
    from millrace.core.errors import ConfigError

    first = HttpServer(create_app(gateway.edge), "127.0.0.1", 0)
    port = int((await first.start()).rpartition(":")[2])

    with pytest.raises(ConfigError, match="--http-port"):
        await HttpServer(create_app(gateway.edge), "127.0.0.1", port).start()

    await first.stop(0)
