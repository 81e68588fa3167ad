"""Loads as they are sent: loops, limits, and the HTTP client, against servers of the tests."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext, suppress

import pytest

from millrace.cli.__main__ import run_verb
from millrace.cli.load.ask import Ask
from millrace.cli.load.http_target import HttpTarget
from millrace.cli.load.outcome import REASON_CUT_SHORT, Outcome
from millrace.cli.load.runner import Limits, LoadRun
from millrace.core.errors import ConfigError, Overloaded, Unavailable

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OPEN_AI_EVENTS = (
    b'{"choices":[{"delta":{"role":"assistant","content":""}}]}',
    b'{"choices":[{"delta":{"content":"a \\"b\\""}}],"usage":null}',
    b'{"choices": [{"delta": {"content": "c"}, "finish_reason": null}]}',
    b'{"choices":[{"delta":{},"finish_reason":"length"}]}',
    b'{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}',
)


class FakeTarget:
    """Answers when its gate opens; counts what runs at once."""

    protocol = "fake"

    def __init__(self, *, is_open: bool = True) -> None:
        self.gate = asyncio.Event()
        self.arrivals = asyncio.Semaphore(0)
        self.num_running = 0
        self.max_running = 0
        if is_open:
            self.gate.set()

    async def send(self, ask: Ask, outcome: Outcome) -> None:
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        self.arrivals.release()
        try:
            await asyncio.sleep(0)
            await self.gate.wait()
            if ask.prompt == "refuse":
                raise Overloaded("full")
        finally:
            self.num_running -= 1
        outcome.num_output_tokens = ask.num_output_tokens

    async def close(self) -> None:
        self.gate.clear()

    async def wait_for(self, count: int) -> None:
        """Until so many more requests have come; a load that sends fewer fails the test."""
        async with asyncio.timeout(10):
            for _ in range(count):
                await self.arrivals.acquire()


def asks(count: int, at_s: float = 0.0) -> list[Ask]:
    return [Ask("go", 4, at_s) for _ in range(count)]


@asynccontextmanager
async def http_server(answer: Answer) -> AsyncIterator[str]:
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                await reader.readuntil(b"\r\n\r\n")
                await answer(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.ensure_future(serve(reader, writer)))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        # Every client has gone by now.
        await asyncio.wait_for(asyncio.gather(*serving), 10)


def head(status: str, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def ask_once(url: str, endpoint: str = "chat") -> Outcome:
    target, outcome = HttpTarget(url, model="m", endpoint=endpoint), Outcome(started_s=0.0)
    try:
        await target.send(Ask("hello", 3), outcome)
    finally:
        await target.close()
    return outcome


async def test_closed_loop_keeps_to_its_streams_and_sends_everything() -> None:
    target = FakeTarget(is_open=False)
    running = asyncio.ensure_future(LoadRun(target).closed_loop(asks(9), 3))
    await target.wait_for(3)
    target.gate.set()

    load = await running

    assert target.max_running == 3
    assert len(load.answered) == 9
    assert load.num_output_tokens == 36


async def test_open_loop_does_not_wait_for_answers() -> None:
    target = FakeTarget(is_open=False)
    running = asyncio.ensure_future(LoadRun(target).open_loop(asks(20)))
    await target.wait_for(20)
    target.gate.set()

    assert len((await running).answered) == 20


async def test_open_loop_sends_no_request_before_its_time() -> None:
    load = await LoadRun(FakeTarget()).open_loop([*asks(1), *asks(1, at_s=0.05)])

    first, second = load.outcomes
    assert second.started_s - first.started_s >= 0.045
    assert second.late_s >= 0.0


async def test_errors_are_counted_and_end_nothing() -> None:
    load = await LoadRun(FakeTarget()).closed_loop([Ask("refuse", 1), *asks(3)], 2)

    assert load.errors() == {"overloaded": 1}
    assert len(load.answered) == 3


async def test_a_load_ends_with_its_time() -> None:
    target = FakeTarget(is_open=False)

    load = await LoadRun(target, Limits(duration_s=0.05)).closed_loop(asks(4), 2)

    assert load.errors() == {REASON_CUT_SHORT: 2}
    assert target.num_running == 0
    assert not load.was_interrupted


async def test_a_request_ends_with_its_time() -> None:
    target = FakeTarget(is_open=False)

    load = await LoadRun(target, Limits(timeout_s=0.02)).closed_loop(asks(2), 2)

    assert load.errors() == {"timeout": 2}


async def test_a_stop_keeps_what_was_seen() -> None:
    target = FakeTarget()
    load_run = LoadRun(target)
    running = asyncio.ensure_future(load_run.open_loop([*asks(3), *asks(1, at_s=60.0)]))
    await target.wait_for(3)

    load_run.stop()
    load = await running

    assert load.was_interrupted
    assert len(load.outcomes) == 3


async def test_http_answer_is_read_from_chunks_cut_anywhere() -> None:
    stream = b"".join(b"data: " + event + b"\n\n" for event in (*OPEN_AI_EVENTS, b"[DONE]"))

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head("200 OK", "Transfer-Encoding: chunked"))
        for index in range(0, len(stream), 7):
            writer.write(chunk(stream[index : index + 7]))
        writer.write(b"0\r\n\r\n")

    async with http_server(answer) as url:
        outcome = await ask_once(url)

    assert len(outcome.event_times_s) == 2
    assert (outcome.num_prompt_tokens, outcome.num_output_tokens) == (7, 3)


async def test_http_refusal_keeps_status_and_code() -> None:
    body = json.dumps({"error": {"message": "full", "code": "queue_full"}}).encode()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(head("429 Too Many Requests", f"content-length: {len(body)}") + body)

    async with http_server(answer) as url:
        target = HttpTarget(url, model="m")
        load = await LoadRun(target).closed_loop(asks(3), 1)
        await target.close()

    assert load.errors() == {"http_429_queue_full": 3}


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"SMTP ready\r\n\r\n",
        head("200 OK", "transfer-encoding: chunked") + chunk(b"data: {}\n\n"),
        head("200 OK", "content-length: 99") + b"data: {}\n\n",
    ],
)
async def test_a_broken_http_answer_is_an_error(reply: bytes) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply)
        writer.close()

    async with http_server(answer) as url:
        with pytest.raises(Unavailable):
            await ask_once(url)


STREAM = b"".join(b"data: " + event + b"\n\n" for event in (*OPEN_AI_EVENTS, b"[DONE]"))
WHOLE = head("200 OK", f"content-length: {len(STREAM)}") + STREAM


def reset(writer: asyncio.StreamWriter) -> None:
    """Ends the connection at once, with a reset."""
    plug = writer.get_extra_info("socket")
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize("end", [asyncio.StreamWriter.close, reset])
async def test_a_kept_connection_that_ends_without_a_word_is_replaced(
    end: Callable[[asyncio.StreamWriter], None],
) -> None:
    """A server that takes one request per connection and says nothing of it."""
    used: set[asyncio.StreamWriter] = set()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if writer in used:
            end(writer)
        else:
            used.add(writer)
            writer.write(WHOLE)

    async with http_server(answer) as url:
        target = HttpTarget(url, model="m", endpoint="chat")
        load = await LoadRun(target).closed_loop(asks(6), 1)
        await target.close()

    assert load.errors() == {}
    assert len(used) == 6


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        # A new connection that says nothing: asked once and no more.
        ([[b""]], (1, 1)),
        # A kept one that says something is not asked again, and neither is the one in its place.
        ([[WHOLE, WHOLE[:30]]], (2, 2)),
        ([[WHOLE, WHOLE[:-5]]], (2, 2)),
        ([[WHOLE, b""], [b""]], (2, 3)),
    ],
)
async def test_nothing_else_is_asked_twice(
    replies: list[list[bytes]], expected: tuple[int, int]
) -> None:
    waiting = iter(replies)
    scripts: dict[asyncio.StreamWriter, Iterator[bytes]] = {}
    num_asked = 0

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_asked
        num_asked += 1
        if writer not in scripts:
            scripts[writer] = iter(next(waiting))
        reply = next(scripts[writer])
        writer.write(reply)
        if reply is not WHOLE:
            writer.close()

    num_sent, num_expected = expected
    async with http_server(answer) as url:
        target = HttpTarget(url, model="m", endpoint="chat")
        for number in range(1, num_sent + 1):
            fails = pytest.raises(Unavailable) if number == num_sent else nullcontext()
            with fails:
                await target.send(Ask("hello", 3), Outcome(started_s=0.0))
        await target.close()

    assert num_asked == num_expected


async def test_the_first_listed_model_is_taken() -> None:
    body = json.dumps({"data": [{"id": "first"}, {"id": "second"}]}).encode()
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if asked:
            asked.append(await reader.readuntil(b"}"))
            writer.write(head("503 Busy", "content-length: 0"))
            return
        asked.append(b"")
        writer.write(head("200 OK", f"content-length: {len(body)}") + body)

    async with http_server(answer) as url:
        target = HttpTarget(url + "/v1/")
        await target.choose_model()
        with pytest.raises(Unavailable, match="HTTP 503"):
            await target.send(Ask("hello", 1), Outcome(started_s=0.0))
        await target.close()

    assert b'"stream_options": {"include_usage": true}' in asked[1]


def test_an_address_that_is_not_http_is_refused() -> None:
    with pytest.raises(ConfigError, match="--url is no URL; it must begin with http"):
        HttpTarget("localhost:8080")


@pytest.mark.parametrize(
    "flags",
    [
        ["--rate", "1", "--concurrency", "2"],
        ["--burst", "4"],
        ["--protocol", "grpc", "--url", "http://127.0.0.1:1"],
        ["--protocol", "http", "--address", "127.0.0.1:1"],
        ["--endpoint", "chat"],
        ["--slo", "speed=1"],
        ["--trace", "/nonexistent/trace.jsonl"],
    ],
)
def test_flags_that_do_not_fit_are_one_line(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb(["bench", *flags]) == 1

    shown = capsys.readouterr()
    assert shown.err.startswith("millrace: ")
    assert shown.err.count("\n") == 1


async def test_interrupt_prints_what_was_seen() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        started.set()
        writer.write(head("200 OK", "transfer-encoding: chunked") + chunk(b"data: {}\n\n"))

    started = asyncio.Event()
    async with http_server(answer) as url:
        flags = ["--url", url, "--model", "m", "--warmup", "0", "--json"]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "millrace.cli", "bench", *flags),
            stdout=subprocess.PIPE,
            env=dict(os.environ),
        )
        await asyncio.wait_for(started.wait(), 20)
        process.send_signal(signal.SIGINT)
        shown, _ = await asyncio.wait_for(process.communicate(), 20)

    figures = json.loads(shown)
    assert process.returncode == 130
    assert figures["was_interrupted"]
    assert figures["cut_short"] >= 1


@pytest.mark.parametrize("text", ["0", "9-", "-9", "30-20", "1-2-3", "many"])
def test_a_spread_that_is_none_is_refused_by_its_flag(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_verb(["bench", f"--input-tokens={text}"])

    assert "--input-tokens" in capsys.readouterr().err
