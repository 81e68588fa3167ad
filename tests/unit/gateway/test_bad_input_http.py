"""Bad input over HTTP, by row of the table of bad inputs: the status, and nothing harmed.

Rows that are not here: B4 and B5 (there are no API keys yet), B19 (tests of the tokenizer), B20 and
B21 (there is no constrained output yet).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

from millrace.core.errors import Overloaded
from millrace.gateway.http.app import create_app
from millrace.gateway.http.connection import MAX_HEAD_BYTES
from tests.unit.gateway.raw_client import exchange, served

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HI = [{"role": "user", "content": "hi"}]
HI_BYTES = b'{"messages": [{"role": "user", "content": "hi"}], '
JSON = {"content-type": "application/json"}
# Generous for a busy machine; what this guards against takes many times as long.
FAST_S = 3.0


def chat(**fields: Any) -> tuple[str, bytes]:
    return CHAT, json.dumps({"messages": HI, **fields}).encode()


def text(**fields: Any) -> tuple[str, bytes]:
    return TEXT, json.dumps({"prompt": "hi", **fields}).encode()


def raw(body: bytes) -> tuple[str, bytes]:
    return CHAT, body


def said(content: bytes) -> tuple[str, bytes]:
    return CHAT, b'{"messages": [{"role": "user", "content": ' + content + b"}]}"


ESCAPED_QUOTES = b'{"x": [' + b"[]," * 100 + b'"' + rb"\"" * 2_000_000

# row, request, status, param, words of the message
ROWS: list[tuple[str, tuple[str, bytes], int, str | None, list[str]]] = [
    ("B1", raw(b""), 400, None, ["not JSON"]),
    ("B1", raw(b'{"messages": ['), 400, None, ["line 1"]),
    ("B1", raw(b"\x00\x01\x02"), 400, None, ["not JSON"]),
    ("B1", raw(b"null"), 400, None, ["object"]),
    ("B2", raw(b"{}"), 400, "messages", ["missing"]),
    ("B2", chat(messages=[]), 400, "messages", ["0 entries"]),
    ("B2", (TEXT, b"{}"), 400, "prompt", ["missing"]),
    ("B2", text(prompt=""), 400, "prompt", ["empty"]),
    ("B2", text(prompt=[]), 400, "prompt", []),
    ("B3", chat(model="nope"), 404, "model", ["nope", "tiny"]),
    ("B6", text(prompt="x" * 64), 400, "prompt", ["64 tokens", "holds 64"]),
    ("B6", text(prompt="x" * 500), 400, "prompt", ["500 tokens", "holds 64"]),
    ("B6", text(prompt=[1] * 1_000_000), 400, "prompt", ["1000000", "holds 64"]),
    ("B7", text(max_tokens=63), 400, "max_tokens", ["2 tokens", "together 65", "64"]),
    ("B8", chat(max_tokens=0), 400, "max_tokens", ["0"]),
    ("B8", chat(max_tokens=-1), 400, "max_tokens", ["-1"]),
    ("B8", chat(max_tokens=2**31), 400, "max_tokens", [str(2**31)]),
    ("B8", chat(max_tokens="ten"), 400, "max_tokens", ['"ten"', "an integer"]),
    ("B9", chat(temperature=-1), 400, "temperature", ["-1"]),
    ("B9", chat(temperature=3), 400, "temperature", ["3", "0 to 2"]),
    ("B9", raw(b'{"temperature": NaN}'), 400, None, ["NaN"]),
    ("B9", raw(b'{"temperature": Infinity}'), 400, None, ["Infinity"]),
    ("B9", raw(HI_BYTES + b'"temperature": 1e999}'), 400, "temperature", ["a number"]),
    ("B10", chat(top_p=0), 400, "top_p", ["0"]),
    ("B10", chat(top_p=1.1), 400, "top_p", ["1.1"]),
    ("B10", chat(top_k=-2), 400, "top_k", ["-2"]),
    ("B10", chat(presence_penalty=2.1), 400, "presence_penalty", ["2.1"]),
    ("B10", chat(frequency_penalty=-2.1), 400, "frequency_penalty", ["-2.1"]),
    ("B11", chat(n=0), 400, "n", ["0", "16"]),
    ("B11", chat(n=10**6), 400, "n", ["1000000", "16"]),
    ("B12", chat(logprobs=True, top_logprobs=21), 400, "top_logprobs", ["21", "20"]),
    ("B12", text(logprobs=1000), 400, "logprobs", ["1000", "20"]),
    ("B12", chat(prompt_logprobs=-1), 400, "prompt_logprobs", ["not supported"]),
    ("B13", chat(stop=["a"] * 17), 400, "stop", ["17", "16"]),
    ("B13", chat(stop=[""]), 400, "stop", ["0 characters"]),
    ("B13", chat(stop="x" * 2**20), 400, "stop", [str(2**20), "1024"]),
    ("B14", chat(logit_bias={"512": 1}), 400, "logit_bias", ["512", "511"]),
    ("B14", chat(logit_bias={"1": 1e9}), 400, "logit_bias", ["100"]),
    ("B14", chat(logit_bias={"1": -1e9}), 400, "logit_bias", ["-100"]),
    ("B14", chat(logit_bias={"-1": 1}), 400, "logit_bias", ["'-1'"]),
    ("B15", text(prompt=[1, 512]), 400, "prompt", ["512", "511"]),
    ("B15", text(prompt=[-1]), 400, "prompt", ["-1"]),
    ("B15", text(prompt=[2**70]), 400, "prompt", []),
    ("B15", chat(stop_token_ids=[512]), 400, "stop_token_ids", ["512"]),
    ("B16", raw(b" " * (8 << 20) + b"{}"), 413, None, [str(8 << 20)]),
    ("B18", said(b'"\xff\xfe"'), 400, None, ["not UTF-8"]),
    ("B18", said(b'"\xed\xa0\x80"'), 400, None, ["not UTF-8"]),
    ("B18", said(rb'"\ud800"'), 400, "messages[0].content", ["D800"]),
    ("B22", chat(audio={"voice": "x"}), 400, "audio", ["not supported"]),
    ("B22", chat(tools=[{"type": "function"}]), 400, "tools", ["not supported"]),
    ("B22", chat(max_tokns=1), 400, "max_tokns", ["did you mean max_tokens"]),
    ("B26", chat(timeout_ms=0), 400, "timeout_ms", ["0"]),
    ("B28", raw(b'{"messages": ' + b"[" * 10_000), 400, None, ["deeper than 64"]),
    ("B28", raw(b'{"messages":' + b'{"a":' * 10_000 + b"}" * 10_001), 400, None, ["deeper"]),
    ("B28", raw(b'{"messages":[' + b"{}," * 10**6 + b"{}]}"), 400, None, ["100000"]),
    ("B28", chat(messages=[{}] * 5000), 400, "messages", ["5000", "4096"]),
    ("B28", chat(max_tokens=10**4000), 400, "max_tokens", ["64 bits"]),
    ("B28", raw(b'{"seed": ' + b"9" * 10**6 + b"}"), 400, None, ["not JSON"]),
    ("B28", raw(HI_BYTES + b'"seed": 1e' + b"9" * 10**6 + b"}"), 400, "seed", ["integer"]),
    ("B28", raw(ESCAPED_QUOTES), 400, None, ["not JSON"]),
]


@pytest.fixture(autouse=True)
async def nothing_leaks(gateway: Harness) -> AsyncIterator[None]:
    """Whatever came in: no request lives, no task is left."""
    num_tasks = len(asyncio.all_tasks())
    yield
    assert gateway.pipeline.num_in_flight == 0
    await gateway.until(lambda: len(asyncio.all_tasks()) <= num_tasks)


@pytest.mark.parametrize(
    ("row", "request_", "status", "param", "words"),
    ROWS,
    ids=[f"{number}-{each[0]}" for number, each in enumerate(ROWS)],
)
async def test_bad_input_is_refused_fast_and_not_published(
    gateway: Harness,
    row: str,
    request_: tuple[str, bytes],
    status: int,
    param: str | None,
    words: list[str],
) -> None:
    path, body = request_
    started = time.perf_counter()
    async with gateway.client() as client:
        reply = await client.post(path, content=body, headers=JSON)
    elapsed_s = time.perf_counter() - started

    assert reply.status_code == status, reply.text[:500]
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    if param is not None:
        assert error["param"] == param
    assert all(word in error["message"] for word in words), error["message"][:500]
    assert len(error["message"]) < 1000
    assert reply.headers["x-should-retry"] == "false"
    assert len(reply.headers["x-request-id"]) == 32
    assert gateway.bus.published == []
    assert elapsed_s < FAST_S


async def test_b6_prompt_exactly_at_the_limit_works(gateway: Harness) -> None:
    async with gateway.client() as client:
        as_text = await client.post(TEXT, json={"prompt": "x" * 63})
        as_ids = await client.post(TEXT, json={"prompt": [1] * 63, "max_tokens": 1})

    for reply in (as_text, as_ids):
        assert reply.status_code == 200
        usage = reply.json()["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (63, 1)


async def test_b14_logit_bias_at_the_limit_works(gateway: Harness) -> None:
    async with gateway.client() as client:
        reply = await client.post(CHAT, json={"messages": HI, "logit_bias": {"511": -100}})
    assert reply.status_code == 200


async def test_b16_streamed_body_is_cut_at_the_limit(gateway: Harness) -> None:
    num_sent = 0

    async def parts() -> AsyncIterator[bytes]:
        nonlocal num_sent
        for _ in range(64):
            num_sent += 1
            yield b" " * (1 << 20)

    async with gateway.client() as client:
        reply = await client.post(CHAT, content=parts(), headers=JSON)

    assert reply.status_code == 413
    assert gateway.bus.published == []


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data; boundary=x", ""])
async def test_b17_wrong_content_type_is_415(gateway: Harness, content_type: str) -> None:
    async with gateway.client() as client:
        reply = await client.post(CHAT, content=b"{}", headers={"content-type": content_type})
    assert (reply.status_code, reply.json()["error"]["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("image/png", 406),
        ("text/html, application/xml;q=0.9", 406),
        ("application/json", 200),
        ("text/event-stream", 200),
        ("text/html, */*;q=0.1", 200),
        ("APPLICATION/JSON; charset=utf-8", 200),
        ("", 200),
    ],
)
async def test_b17_accept(gateway: Harness, accept: str, status: int) -> None:
    async with gateway.client() as client:
        reply = await client.post(CHAT, json={"messages": HI}, headers={"accept": accept})
    assert reply.status_code == status
    if status == 406:
        assert reply.json()["error"]["code"] == "not_acceptable"
        assert gateway.bus.published == []


async def test_b18_nul_bytes_go_round(gateway: Harness) -> None:
    gateway.reply = [0, 256]
    async with gateway.client() as client:
        reply = await client.post(TEXT, json={"prompt": "a\x00b"})
    assert gateway.queued.prompt_token_ids == [97, 0, 98]
    assert reply.json()["choices"][0]["text"] == "\x00"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "unknown_url"),
        ("POST", CHAT + "/", 404, "unknown_url"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        # Row B30: over HTTP a request is ended by closing its connection.
        ("POST", "/v1/chat/completions/" + "f" * 32 + "/cancel", 404, "unknown_url"),
    ],
)
async def test_b23_unknown_path_or_verb(
    gateway: Harness, method: str, path: str, status: int, code: str
) -> None:
    async with gateway.client() as client:
        reply = await client.request(method, path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


async def test_b24_full_queue_is_429(gateway: Harness) -> None:
    gateway.bus.refusal = Overloaded("the intake queue is full", retry_after_s=1.0)
    async with gateway.client() as client:
        reply = await client.post(CHAT, json={"messages": HI})
    assert reply.status_code == 429
    assert reply.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(reply.headers["retry-after"]) <= 60
    assert "x-should-retry" not in reply.headers


@pytest.mark.parametrize("cause", ["no worker", "draining"])
async def test_b25_no_worker_or_draining_is_503(gateway: Harness, cause: str) -> None:
    if cause == "draining":
        gateway.pipeline.start_draining()
    else:
        gateway.directory.on_detached("tiny")
    async with gateway.client() as client:
        reply = await client.post(CHAT, json={"messages": HI})
    assert reply.status_code == 503
    assert int(reply.headers["retry-after"]) >= 1
    assert gateway.bus.published == []


async def test_b26_deadline_too_small_is_504(gateway: Harness) -> None:
    gateway.silence()
    async with gateway.client() as client:
        reply = await client.post(CHAT, json={"messages": HI, "timeout_ms": 1})
    assert reply.status_code == 504


async def test_b27_same_key_with_another_body_is_409(gateway: Harness) -> None:
    headers = {"Idempotency-Key": "order-66"}
    async with gateway.client() as client:
        await client.post(CHAT, json={"messages": HI}, headers=headers)
        reply = await client.post(CHAT, json={"messages": HI, "seed": 1}, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "conflict")
    assert len(gateway.bus.published) == 1
    await gateway.pipeline.finish_errands()


@pytest.mark.parametrize(
    "traceparent",
    ["x", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "ff-" + "1" * 32 + "-zz-01", "\xff" * 100],
)
async def test_b29_bad_traceparent_is_ignored(gateway: Harness, traceparent: str) -> None:
    async with gateway.client() as client:
        reply = await client.post(
            CHAT, json={"messages": HI}, headers=[(b"traceparent", traceparent.encode("latin-1"))]
        )
    assert reply.status_code == 200
    trace_id = reply.headers["traceresponse"].split("-")[1]
    assert len(trace_id) == 32
    assert trace_id not in traceparent


GET = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (GET + b"x-a: " + b"a" * (64 << 10) + b"\r\n\r\n", b"431"),
        (GET + b"".join(b"x-%d: aaaaaaaa\r\n" % n for n in range(5000)) + b"\r\n", b"431"),
        (b"GET /" + b"a" * (64 << 10) + b" HTTP/1.1\r\nhost: x\r\n\r\n", b"431"),
        (GET + b"x-a: " + b"a" * (MAX_HEAD_BYTES - 100) + b"\r\n\r\n", b"200"),
        (GET + b"x-a: b\rx-c: d\r\n\r\n", b"400"),
        (GET + b"x a: b\r\n\r\n", b"400"),
        (b"rubbish\r\n\r\n", b"400"),
    ],
)
async def test_b29_abuse_of_headers(gateway: Harness, head: bytes, status: bytes) -> None:
    async with served(create_app(gateway.edge)) as address:
        reply = await exchange(address, head, has_end=False)
        after = await exchange(address, GET + b"\r\n", has_end=False)
    assert reply.split(b" ", 2)[1] == status, reply[:200]
    if status != b"200":
        error = json.loads(reply.partition(b"\r\n\r\n")[2])["error"]
        assert error["type"] == "invalid_request_error"
    assert after.startswith(b"HTTP/1.1 200")


async def test_b29_header_that_never_ends_is_cut(gateway: Harness) -> None:
    async with served(create_app(gateway.edge)) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(GET + b"x-a: ")
        num_sent = 0
        async with asyncio.timeout(10):
            while not reader.at_eof() and num_sent < 64 << 20:
                try:
                    writer.write(b"a" * 4096)
                    await writer.drain()
                except OSError:
                    break
                num_sent += 4096
                await asyncio.sleep(0)
        writer.close()
    assert num_sent < 8 << 20
