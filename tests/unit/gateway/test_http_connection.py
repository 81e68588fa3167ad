"""One HTTP connection over its whole life: slow bodies, ends of a side, refusals that arrive."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from millrace.core.tokens import FinishReason
from millrace.gateway.http.app import create_app
from millrace.gateway.http.connection_limits import ConnectionLimits
from millrace.gateway.http.refusal_log import RefusalLog
from tests.unit.gateway.conftest import EOS
from tests.unit.gateway.raw_client import Address, RawClient, exchange, one, replies_in, served
from tests.unit.gateway.raw_requests import get

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

QUICK = ConnectionLimits(head_timeout_s=0.3, body_timeout_s=0.3, min_body_rate=1000)
GENERATE = "/generate"


def ask(*lines: str, path: str = GENERATE, version: str = "HTTP/1.1", **fields: Any) -> bytes:
    """A request that generates."""
    body = json.dumps({"prompt": "hi", **fields}).encode()
    length = f"content-length: {len(body)}"
    return head(length, *lines, path=path, version=version) + body


def head(*lines: str, path: str = GENERATE, version: str = "HTTP/1.1") -> bytes:
    start = f"POST {path} {version}"
    fixed = (start, "host: localhost", "content-type: application/json")
    return "\r\n".join((*fixed, *lines, "", "")).encode()


@asynccontextmanager
async def connected(
    gateway: Harness, limits: ConnectionLimits = QUICK
) -> AsyncIterator[tuple[RawClient, Address]]:
    app = create_app(gateway.edge)
    async with served(app, limits) as address, RawClient.connect(address) as client:
        yield client, address


class TestBody:
    async def test_one_that_stops_is_408(self, gateway: Harness) -> None:
        async with connected(gateway) as (client, _):
            await client.send(head("content-length: 100") + b"{")
            (reply,) = replies_in(await client.rest())
        assert reply.status == 408
        assert "0.3 s" in reply.error["message"]
        assert reply.headers["connection"] == "close"

    async def test_one_that_trickles_is_408(self, gateway: Harness) -> None:
        async with connected(gateway) as (client, _):
            await client.send(head("content-length: 100000"))
            reading = asyncio.create_task(client.rest())
            while not reading.done():
                await client.send(b" ")
                await asyncio.sleep(0.01)
            (reply,) = replies_in(await reading)
        assert reply.status == 408
        assert "1000 bytes/s" in reply.error["message"]

    async def test_slow_one_takes_its_time(self, gateway: Harness) -> None:
        """Thrice as long as it might stand still, at thrice the least rate."""
        body = b'{"prompt": "hi"}'.ljust(3000)
        async with connected(gateway) as (client, _):
            await client.send(head(f"content-length: {len(body)}", "connection: close"))
            for start in range(0, len(body), 30):
                await client.send(body[start : start + 30])
                await asyncio.sleep(0.01)
            (reply,) = replies_in(await client.rest())
        assert reply.status == 200

    async def test_one_that_waits_for_another_reply_is_not_timed(self, gateway: Harness) -> None:
        gateway.silence()
        body = b'{"prompt": "hi"}'
        async with connected(gateway) as (client, _):
            waits = head(f"content-length: {len(body)}", "expect: 100-continue")
            await client.send(ask() + waits)
            await asyncio.sleep(3 * QUICK.body_timeout_s)
            gateway.send([300, EOS], 0, FinishReason.STOP)
            assert b"200 OK" in await client.until(b"\r\n\r\n")
            await client.until(b"HTTP/1.1 100 Continue\r\n\r\n")
            await client.send(body)
            await gateway.until(lambda: len(gateway.bus.published) == 2)
            gateway.send([300, EOS], 0, FinishReason.STOP)
            assert b"200 OK" in await client.until(b"\r\n\r\n")

    async def test_head_that_stops_is_408_and_silence_is_closed(self, gateway: Harness) -> None:
        async with connected(gateway) as (client, address):
            await client.send(b"GET /health HTTP/1.1\r\nhost: loc")
            (reply,) = replies_in(await client.rest())
            silent = await exchange(address, b"", has_end=False)
            blank = await exchange(address, b"\r\n", has_end=False)
        assert reply.status == 408
        assert (silent, blank) == (b"", b"")

    @pytest.mark.parametrize(
        ("path", "header", "status"),
        [
            (GENERATE, ("accept", "*/*"), 413),
            (GENERATE, ("content-type", "text/plain"), 415),
            (GENERATE, ("content-encoding", "br"), 415),
            (GENERATE, ("accept", "image/png"), 406),
            (GENERATE, ("expect", "the unexpected"), 417),
            ("/health", ("accept", "*/*"), 405),
            ("/nowhere", ("accept", "*/*"), 404),
        ],
    )
    async def test_large_one_that_is_refused_reads_why(
        self, gateway: Harness, path: str, header: tuple[str, str], status: int
    ) -> None:
        """urllib says `Connection: close`, and reads the reply when it has sent everything."""
        headers = {"content-type": "application/json", **dict([header])}
        async with served(create_app(gateway.edge)) as (host, port):
            url = f"http://{host}:{port}{path}"
            request = urllib.request.Request(url, bytes(20 << 20), headers)
            with pytest.raises(urllib.error.HTTPError) as refused:
                await asyncio.to_thread(urllib.request.urlopen, request, timeout=20)
            with refused.value as reply:
                assert reply.status == status
                assert json.loads(reply.read())["error"]["message"]

    @pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
    async def test_refusal_before_it_is_read_ends_the_connection(
        self, gateway: Harness, version: str
    ) -> None:
        async with served(create_app(gateway.edge)) as address:
            sent = head("content-length: 9000000", "expect: 100-continue", version=version)
            (reply,) = replies_in(await exchange(address, sent, has_end=False))
        assert (reply.status, reply.headers["connection"]) == (413, "close")

    async def test_endless_one_is_not_drained_for_ever(self, gateway: Harness) -> None:
        async with connected(gateway) as (client, _):
            await client.send(head("transfer-encoding: chunked", path="/nowhere"))
            num_sent = 0
            with pytest.raises(OSError):
                while num_sent < 1 << 30:
                    await client.send(b"100000\r\n" + bytes(1 << 20) + b"\r\n")
                    await client.writer.drain()
                    num_sent += 1 << 20


class TestExpect:
    async def test_body_is_asked_for_when_it_is_wanted(self, gateway: Harness) -> None:
        body = b'{"prompt": "hi"}'
        async with connected(gateway) as (client, _):
            await client.send(head(f"content-length: {len(body)}", "Expect: 100-Continue"))
            assert await client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await client.send(body)
            assert (await client.until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")

    async def test_http_1_0_is_never_told_to_continue(self, gateway: Harness) -> None:
        async with served(create_app(gateway.edge)) as address:
            sent = ask("expect: 100-continue", version="HTTP/1.0")
            received = await exchange(address, sent, [len(sent) - 5])
        assert received.startswith(b"HTTP/1.1 200")


class TestHttp10:
    @pytest.mark.parametrize("lines", [(), ("connection: keep-alive",)])
    async def test_stream_ends_with_the_connection(
        self, gateway: Harness, lines: tuple[str, ...]
    ) -> None:
        async with served(create_app(gateway.edge)) as address:
            sent = ask(*lines, version="HTTP/1.0", stream=True)
            reply = await one(address, sent)
            whole = await one(address, ask(*lines, version="HTTP/1.0"))
        assert reply.headers["connection"] == "close"
        assert "transfer-encoding" not in reply.headers
        assert reply.body.startswith(b"data: ")
        assert reply.body.endswith(b"data: [DONE]\n\n")
        assert whole.headers["connection"] == "close"
        assert len(whole.body) == int(whole.headers["content-length"])


class TestClientEnd:
    """The client ends its side of the connection, as `nc -N` does, and goes on reading."""

    @pytest.mark.parametrize("path", ["/health", "/v1/models", "/model/info", "/metrics"])
    async def test_what_is_ready_is_sent(self, gateway: Harness, path: str) -> None:
        async with served(create_app(gateway.edge)) as address:
            reply = await one(address, get(path.encode()))
        assert reply.status == 200
        assert reply.body

    @pytest.mark.parametrize(
        ("sent", "status"),
        [
            (ask(prompt=1), 400),
            (ask(model="nope"), 404),
            (ask(prompt="x" * 100), 400),
            (get(b"/nowhere"), 404),
        ],
    )
    async def test_errors_are_sent(self, gateway: Harness, sent: bytes, status: int) -> None:
        async with served(create_app(gateway.edge)) as address:
            assert (await one(address, sent)).status == status

    @pytest.mark.parametrize("path", [GENERATE, "/v1/completions"])
    async def test_stream_is_sent_to_its_end(self, gateway: Harness, path: str) -> None:
        gateway.silence()
        async with connected(gateway) as (client, _):
            await client.send(ask(path=path, stream=True))
            client.end()
            await gateway.until(lambda: len(gateway.bus.published) == 1)
            gateway.send([300], 0)
            await asyncio.sleep(0.3)
            gateway.send([301, EOS], 1, FinishReason.STOP)
            (reply,) = replies_in(await client.rest())
        assert reply.body.endswith(b"data: [DONE]\n\n")
        assert gateway.stream.told("abort") == []

    async def test_whole_answer_that_is_generated_is_given_up(self, gateway: Harness) -> None:
        gateway.silence()
        async with connected(gateway) as (client, _):
            await client.send(ask())
            await gateway.until(lambda: len(gateway.bus.published) == 1)
            client.end()
            async with asyncio.timeout(1.0):
                await gateway.until(lambda: gateway.stream.told("abort") != [])
            (reply,) = replies_in(await client.rest())
        assert reply.status == 499
        assert "ended its side" in reply.error["message"]

    async def test_error_that_takes_its_time_is_sent(self, gateway: Harness) -> None:
        gateway.tokenizer.gate = asyncio.Event()
        async with connected(gateway) as (client, _):
            await client.send(ask(prompt="x" * 100))
            client.end()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await client.reader.read(1)
            gateway.tokenizer.gate.set()
            (reply,) = replies_in(await client.rest())
        assert reply.status == 400

    async def test_whole_answer_of_the_cache_is_sent(self, gateway: Harness) -> None:
        wish: dict[str, Any] = {"temperature": 0, "cache": "use"}
        async with served(create_app(gateway.edge)) as address:
            async with RawClient.connect(address) as client:
                await client.send(ask("connection: close", **wish))
                (made,) = replies_in(await client.rest())
            await gateway.pipeline.finish_errands()
            stored = await one(address, ask(**wish))
        assert len(gateway.bus.published) == 1
        assert json.loads(stored.body)["text"] == json.loads(made.body)["text"]

    async def test_all_that_was_asked_before_is_answered(self, gateway: Harness) -> None:
        async with served(create_app(gateway.edge)) as address:
            sent = ask(stream=True) + get(b"/health") + get(b"/nowhere")
            replies = replies_in(await exchange(address, sent))
        assert [reply.status for reply in replies] == [200, 200, 404]

    async def test_stream_of_a_client_that_is_gone_ends_at_once(self, gateway: Harness) -> None:
        """A close shows as an end of its side; without pings no write would fail for 15 s."""
        gateway.silence()
        async with connected(gateway) as (client, _):
            await client.send(ask(stream=True))
            await client.until(b"\r\n\r\n")
            client.writer.close()
            async with asyncio.timeout(1.0):
                await gateway.until(lambda: gateway.stream.told("abort") != [])

    async def test_stream_ends_with_its_client_although_requests_wait_behind_it(
        self, gateway: Harness
    ) -> None:
        gateway.silence()
        async with connected(gateway) as (client, _):
            await client.send(ask(stream=True) + get(b"/health"))
            await client.until(b"\r\n\r\n")
            client.writer.transport.abort()
            while not gateway.stream.told("abort"):
                gateway.send([65], len(gateway.bus.published) - 1)
                await asyncio.sleep(0.01)

    async def test_request_that_is_cut_is_400(self, gateway: Harness) -> None:
        async with served(create_app(gateway.edge)) as address:
            reply = await one(address, head("content-length: 100") + b'{"prompt"')
        assert reply.status == 400
        assert gateway.bus.published == []


@pytest.mark.parametrize(
    "second", [get(b"/health"), b"rubbish\r\n\r\n", b"GET /a HTTP/9.9\r\n\r\n"]
)
async def test_replies_keep_their_order(gateway: Harness, second: bytes) -> None:
    gateway.silence()
    async with connected(gateway) as (client, _):
        await client.send(ask() + second)
        await gateway.until(lambda: len(gateway.bus.published) == 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.reader.read(1)
        gateway.send([300, EOS], 0, FinishReason.STOP)
        first = await client.until(b"}")
        assert first.startswith(b"HTTP/1.1 200")
        assert (await client.until(b"\r\n\r\n")).count(b"HTTP/1.1 ") == 1


async def test_connections_are_closed_when_the_server_stops(gateway: Harness) -> None:
    gateway.silence()
    async with AsyncExitStack() as stack:
        async with served(create_app(gateway.edge), QUICK) as address:
            idle, busy, refused = [
                await stack.enter_async_context(RawClient.connect(address)) for _ in range(3)
            ]
            await busy.send(ask(stream=True))
            await busy.until(b"\r\n\r\n")
            await idle.send(get(b"/health"))
            await idle.until(b"\r\n\r\n")
            await refused.send(b"rubbish\r\n\r\n")
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 2.0
        assert b"400 Bad Request" in await refused.rest()
        for client in (idle, busy):
            await client.rest()


def test_log_of_refusals_names_the_peer_and_does_not_flood(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from starlette.exceptions import HTTPException

    now_s = 0.0
    log = RefusalLog(lambda: now_s)
    error = HTTPException(400, "the host field is missing")
    with caplog.at_level(logging.INFO):
        for _ in range(1000):
            log.note(("127.0.0.1", 4711), error)
        now_s = 60.0
        log.note(("::1", 4712), error)
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "refused a request from 127.0.0.1:4711: 400, the host field is missing"
    assert second == (
        "refused a request from [::1]:4712: 400, the host field is missing "
        "(999 more since the last line)"
    )


async def test_refused_request_is_logged_once(
    gateway: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(gateway) as (client, _):
        host, port = client.writer.get_extra_info("sockname")
        await client.send(b"GET / HTTP/1.1\r\n\r\n")
        await client.rest()
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert lines == [f"refused a request from {host}:{port}: 400, the host field is missing"]


async def test_more_connections_than_allowed_read_why(gateway: Harness) -> None:
    limits = replace(QUICK, max_connections=1)
    async with connected(gateway, limits) as (first, address):
        await first.send(get(b"/health"))
        await first.until(b"\r\n\r\n")
        reply = await one(address, ask(prompt="x" * 5_000_000))
    assert reply.status == 503
    assert reply.headers["retry-after"] == "1"
