"""POST /v1/chat/completions: bodies, chunks, headers, disconnects."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from millrace.core.errors import Overloaded
from millrace.core.tokens import FinishReason
from millrace.gateway.http.app import create_app

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

EOS = 256
PATH = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def events_of(text: str) -> list[Any]:
    """The JSON of each event; [DONE] as text."""
    blocks = [block for block in text.split("\n\n") if block]
    assert all(block.startswith("data: ") for block in blocks)
    payloads = [block.removeprefix("data: ") for block in blocks]
    return [p if p == "[DONE]" else json.loads(p) for p in payloads]


async def test_whole_reply(gateway: Harness) -> None:
    async with gateway.client() as client:
        reply = await client.post(PATH, json={**BODY, "seed": 5})

    body = reply.json()
    request_id = reply.headers["x-request-id"]
    assert reply.status_code == 200
    assert body == {
        "id": f"chatcmpl-{request_id}",
        "object": "chat.completion",
        "created": body["created"],
        "model": "tiny",
        "system_fingerprint": "fp_0123456789ab",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello, world!", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 5,
            "total_tokens": 8,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "millrace": {
            "seed": 5,
            "cached": False,
            "sampling": {
                "temperature": 1.0,
                "top_p": 1.0,
                "top_k": 0,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
            },
        },
    }
    assert gateway.queued.request_id == request_id


async def test_stream_is_golden(gateway: Harness) -> None:
    gateway.reply = [*'"é'.encode(), EOS]
    body = {**BODY, "seed": 5, "stream": True, "stream_options": {"include_usage": True}}
    async with gateway.client() as client:
        reply = await client.post(PATH, json=body)

    created = gateway.queued.arrival_unix_ns // 1_000_000_000
    head = (
        f'data: {{"id":"chatcmpl-{gateway.queued.request_id}","object":"chat.completion.chunk",'
        f'"created":{created},"model":"tiny","system_fingerprint":"fp_0123456789ab","choices":['
    )
    usage = (
        '"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7,'
        '"prompt_tokens_details":{"cached_tokens":0}}}\n\n'
    )
    text = r"\"é"
    assert reply.text == (
        head + '{"index":0,"delta":{"role":"assistant","content":"","refusal":null},'
        '"logprobs":null,"finish_reason":null}],"millrace":{"seed":5,"cached":false,'
        '"sampling":{"temperature":1.0,"top_p":1.0,"top_k":0,"min_p":0.0,'
        '"repetition_penalty":1.0}},"usage":null}\n\n'
        + head
        + '{"index":0,"delta":{"content":"'
        + text
        + '"},"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
        + head
        + '{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}\n\n'
        + head
        + "],"
        + usage
        + "data: [DONE]\n\n"
    )
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-accel-buffering"] == "no"
    assert len(reply.headers["x-request-id"]) == 32


async def test_stream_without_usage_has_no_usage_key(gateway: Harness) -> None:
    async with gateway.client() as client:
        reply = await client.post(PATH, json={**BODY, "stream": True})

    events = events_of(reply.text)
    assert events[-1] == "[DONE]"
    assert all("usage" not in event for event in events[:-1])
    assert events[-2]["choices"][0]["finish_reason"] == "stop"


async def test_every_choice_begins_with_its_role(gateway: Harness) -> None:
    async with gateway.client() as client:
        reply = await client.post(PATH, json={**BODY, "stream": True, "n": 2})

    events = events_of(reply.text)[:-1]
    for index in (0, 1):
        deltas = [c["delta"] for e in events for c in e["choices"] if c["index"] == index]
        assert deltas[0]["role"] == "assistant"
        assert "".join(delta.get("content", "") for delta in deltas) == "Hello, world!"


async def test_logprobs_show_token_bytes_and_top(gateway: Harness) -> None:
    body = {**BODY, "logprobs": True, "top_logprobs": 2}
    async with gateway.client() as client:
        reply = await client.post(PATH, json=body)

    content = reply.json()["choices"][0]["logprobs"]["content"]
    assert content[0] == {
        "token": "Hello",
        "logprob": -0.5,
        "bytes": [72, 101, 108, 108, 111],
        "top_logprobs": [
            {"token": "Hello", "logprob": -0.5, "bytes": [72, 101, 108, 108, 111]},
            {"token": "A", "logprob": -1.5, "bytes": [65]},
        ],
    }
    assert len(content) == 5


async def test_content_may_be_text_parts_and_developer_is_system(gateway: Harness) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    async with gateway.client() as client:
        reply = await client.post(PATH, json={"messages": messages})

    assert reply.status_code == 200
    assert bytes(gateway.queued.prompt_token_ids) == b"be brief\nab\n"


async def test_error_in_the_middle_of_a_stream_is_a_chunk(gateway: Harness) -> Any:
    gateway.silence()

    async def go() -> str:
        async with gateway.client() as client:
            return (await client.post(PATH, json={**BODY, "stream": True})).text

    reply = asyncio.create_task(go())
    await gateway.until(lambda: gateway.bus.published != [])
    gateway.send([300], 0)
    gateway.send([], 1, FinishReason.ERROR)

    events = events_of(await reply)
    assert events[-1] == "[DONE]"
    assert events[-2]["error"]["code"] == "internal"
    assert events[-2]["error"]["type"] == "server_error"


async def test_refusal_before_the_stream_is_a_plain_error(gateway: Harness) -> None:
    gateway.bus.refusal = Overloaded("the queue is full", retry_after_s=2.5)
    async with gateway.client() as client:
        reply = await client.post(PATH, json={**BODY, "stream": True})

    assert reply.status_code == 429
    assert reply.headers["retry-after"] == "3"
    assert "x-should-retry" not in reply.headers
    assert reply.json()["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_disconnect_aborts_the_request(gateway: Harness, is_streamed: bool) -> Any:
    gateway.silence()
    app = create_app(gateway.edge)
    gone = asyncio.Event()
    sent: list[Any] = []
    raw = json.dumps({**BODY, "stream": is_streamed}).encode()
    incoming = [{"type": "http.request", "body": raw, "more_body": False}]

    async def receive() -> Any:
        if incoming:
            return incoming.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "server": ("gateway", 80),
        "headers": [(b"content-type", b"application/json"), (b"host", b"gateway")],
    }
    running = asyncio.create_task(app(scope, receive, send))
    await gateway.until(lambda: gateway.bus.published != [])
    gateway.send([300], 0)
    await gateway.until(lambda: gateway.tokenizer.decode_calls != [])

    gone.set()
    await asyncio.wait_for(running, 5)

    await gateway.until(lambda: gateway.stream.told("abort") != [])
    assert gateway.stream.told("abort") == [("abort", gateway.queued.request_id, "client")]
    assert gateway.pipeline.num_in_flight == 0


async def test_client_that_takes_nothing_is_cut(gateway: Harness) -> Any:
    import dataclasses

    gateway.silence()
    edge = dataclasses.replace(gateway.edge, write_timeout_s=0.02)
    app = create_app(edge)
    raw = json.dumps({**BODY, "stream": True}).encode()
    incoming = [{"type": "http.request", "body": raw, "more_body": False}]

    async def receive() -> Any:
        if incoming:
            return incoming.pop()
        return await asyncio.Event().wait()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    scope = {
        "type": "http",
        "method": "POST",
        "path": PATH,
        "query_string": b"",
        "root_path": "",
        "scheme": "http",
        "server": ("gateway", 80),
        "headers": [(b"content-type", b"application/json")],
    }

    await asyncio.wait_for(app(scope, receive, send), 5)

    await gateway.until(lambda: gateway.stream.told("abort") != [])


async def test_idle_stream_is_pinged(gateway: Harness) -> Any:
    import dataclasses

    import httpx

    gateway.silence()
    edge = dataclasses.replace(gateway.edge, ping_interval_s=0.01)
    transport = httpx.ASGITransport(create_app(edge))

    async def go() -> str:
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return (await client.post(PATH, json={**BODY, "stream": True})).text

    reply = asyncio.create_task(go())
    await gateway.until(lambda: gateway.bus.published != [])
    await asyncio.sleep(0.05)
    gateway.send([300, EOS], 0, FinishReason.STOP)

    text = await reply
    assert ": ping\ndata: " in text
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/generate"])
async def test_streamed_text_stands_as_it_is_without_escapes(gateway: Harness, path: str) -> None:
    gateway.reply = [400, EOS]
    asked = {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": "a"}
    async with gateway.client() as client:
        reply = await client.post(path, json={**asked, "stream": True})

    assert '"河🌊"' in reply.text


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None},
        {"role": "assistant"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "tool_calls": None, "refusal": None, "audio": None},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": []},
    ],
)
async def test_assistant_that_said_nothing_is_an_empty_turn(
    gateway: Harness, turn: dict[str, Any]
) -> None:
    messages = [{"role": "user", "content": "a"}, turn, {"role": "user", "content": "b"}]
    async with gateway.client() as client:
        reply = await client.post(PATH, json={"messages": messages})

    assert reply.status_code == 200
    assert bytes(gateway.queued.prompt_token_ids) == b"a\n\nb\n"


@pytest.mark.parametrize("role", ["user", "system", "developer", "tool"])
async def test_null_from_anybody_else_is_refused_as_null(gateway: Harness, role: str) -> None:
    async with gateway.client() as client:
        reply = await client.post(PATH, json={"messages": [{"role": role, "content": None}]})

    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "messages[0].content")
    assert error["message"].startswith("messages[0].content is null; it must be a string")


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "assistant", "content": "a", "prefix": True}, "messages[0].prefix"),
        ({"role": "assistant", "tool_calls": [{"id": "x"}]}, "messages[0].tool_calls"),
        ({"role": "assistant", "content": None, "refusal": "no"}, "messages[0].refusal"),
        ({"role": "tool", "content": "a", "tool_call_id": "x"}, "messages[0].tool_call_id"),
        ({"role": "user", "content": "a", "images": ["x"]}, "messages[0].images"),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
            "messages[0].content",
        ),
    ],
)
async def test_what_would_change_the_prompt_is_refused(
    gateway: Harness, message: dict[str, Any], param: str
) -> None:
    async with gateway.client() as client:
        reply = await client.post(PATH, json={"messages": [message]})

    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param)
    assert error["code"] == "unsupported_parameter"


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("a", '"a"'),
        ({}, "an object"),
        ({"text": "a"}, "an object"),
        ({"type": "text"}, "content[1].text is missing"),
        ({"type": "text", "text": 5}, "content[1].text is 5; it must be a string"),
    ],
)
async def test_a_wrong_part_is_named(gateway: Harness, part: Any, words: str) -> None:
    content = [{"type": "text", "text": "a"}, part]
    async with gateway.client() as client:
        reply = await client.post(PATH, json={"messages": [{"role": "user", "content": content}]})

    error = reply.json()["error"]
    assert reply.status_code == 400
    assert "messages[0].content[1]" in error["message"]
    assert words in error["message"]
    assert error["param"].startswith("messages[0].content")


@pytest.mark.parametrize(
    "fields",
    [
        {"continue_final_message": True},
        {"add_generation_prompt": False},
        {"continueFinalMessage": 1},
    ],
)
async def test_continuing_the_last_message_is_refused(
    gateway: Harness, fields: dict[str, Any]
) -> None:
    async with gateway.client() as client:
        reply = await client.post(PATH, json={**BODY, **fields})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unsupported_parameter")


async def test_unknown_model_error_lists_a_bounded_number_of_models(gateway: Harness) -> None:
    import dataclasses

    from millrace.core.membership import WorkerRegistration
    from tests.unit.gateway.conftest import MODEL

    for number in range(30):
        info = dataclasses.replace(MODEL, name=f"model-{number:02}-{'x' * 300}")
        registration = WorkerRegistration(f"w{number}", "b", "x:1", info, 1, 1, 1)
        gateway.directory.on_worker(f"w{number}", registration)
    async with gateway.client() as client:
        reply = await client.post(PATH, json={**BODY, "model": "nope"})

    message = reply.json()["error"]["message"]
    assert reply.status_code == 404
    assert "model-00" in message
    assert message.endswith("and 21 more")
    assert len(message) < 1000
