"""The HTTP edge as a peer sees it: one reply per request, whatever the bytes are.

Beside a table of what RFC 9112 asks for stands h11, another parser: what is served must be the
request that it sees too. `pytest -s` prints how many byte sequences were sent.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import AsyncIterator, Sequence

import h11
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from millrace.gateway.access_log import AccessLog
from millrace.gateway.drain_rate import Load
from millrace.gateway.http.access import HttpAccess
from millrace.gateway.http.errors import on_http_error
from millrace.gateway.http.gate import Gate
from millrace.gateway.http.hosts import AllowedHosts
from millrace.gateway.http.middleware import CallMiddleware
from millrace.gateway.http.origins import AllowedOrigins
from millrace.telemetry.metrics import GatewayMetrics
from tests.unit.gateway.raw_client import (
    Address,
    Reply,
    exchange,
    num_sent,
    one,
    replies_in,
    served,
)
from tests.unit.gateway.raw_requests import (
    CHUNKED,
    HELLO,
    INNER_CHUNKS,
    INNER_LENGTH,
    LENGTH_5,
    SMUGGLED,
    TABLE,
    UPGRADE,
    Raw,
    chunked,
    get,
    post,
)

# One server for all of them.
pytestmark = pytest.mark.asyncio(loop_scope="module")

Seen = tuple[str, str, str]
REFUSALS = {400, 408, 417, 431, 501, 505}
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
NUM_MUTANTS = 10 * int(os.environ.get("MILLRACE_TEST_EXAMPLES", "60"))


async def echo(request: Request) -> Response:
    """What the server takes the request for."""
    body = await request.body()
    if request.url.path in ("/204", "/304"):
        return Response(status_code=int(request.url.path[1:]))
    if request.url.path == "/names":
        return JSONResponse(request.headers.keys())
    target = request.scope["raw_path"] + b"?" + request.scope["query_string"]
    return JSONResponse([request.method, target.decode(), body.decode("latin-1")])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def address() -> AsyncIterator[Address]:
    """The real server, with the real middleware, in front of `echo`."""
    origins = AllowedOrigins()
    app = Starlette(
        routes=[Route("/{path:path}", echo, methods=METHODS)],
        middleware=[
            Middleware(
                CallMiddleware,
                operations={},
                load=lambda: Load(1, 0, 0.0),
                origins=origins,
                access=HttpAccess((), AccessLog(GatewayMetrics(CollectorRegistry()))),
            ),
            Middleware(Gate, hosts=AllowedHosts(), origins=origins),
        ],
        exception_handlers={HTTPException: on_http_error},
    )
    async with served(app) as address:
        yield address
    print(f"{num_sent.total()} byte sequences")


@pytest.fixture
def rng() -> random.Random:
    """MILLRACE_TEST_SEED draws other borders and mutants, MILLRACE_TEST_EXAMPLES more of them."""
    seed = int(os.environ.get("MILLRACE_TEST_SEED", "1"))
    print(f"MILLRACE_TEST_SEED={seed}")
    return random.Random(seed)


async def check(
    address: Address, raw: Raw, cuts: Sequence[int] = (), *, has_end: bool = True
) -> None:
    received = await exchange(address, raw.sent, cuts, has_end=has_end)
    found = replies_in(received, [raw.sent[:4].decode("latin-1")])
    told = f"{raw.name}, cut at {list(cuts)[:5]}: {found} for {raw.sent[:300]!r}"
    assert len(found) == len(raw.statuses), told
    for reply, expected in zip(found, raw.statuses, strict=True):
        assert str(reply.status) in expected.split("|"), told
        assert b'"/smuggled' not in reply.body, told
        if reply.status in REFUSALS:
            check_refusal(reply)


def check_refusal(reply: Reply) -> None:
    """As every error looks, and the last reply of its connection."""
    assert reply.headers["connection"] == "close"
    assert reply.error["type"] == "invalid_request_error"
    assert reply.error["message"]
    assert len(reply.headers["x-request-id"]) == 32


@pytest.mark.parametrize("raw", TABLE, ids=[raw.name for raw in TABLE])
async def test_table(address: Address, raw: Raw, rng: random.Random) -> None:
    await check(address, raw)
    if len(raw.sent) < 2000:
        await check(address, raw, range(1, len(raw.sent)))
    for _ in range(3):
        await check(address, raw, borders(rng, raw.sent, rng.randrange(1, 6)))


async def test_trailers_do_not_become_headers(address: Address) -> None:
    sent = chunked(b"5\r\nhello\r\n0\r\nIdempotency-Key: x\r\n\r\n", b"A: b")
    reply = await one(address, sent.replace(b"/a", b"/names"))
    assert json.loads(reply.body) == ["host", "transfer-encoding", "a"]


REFUSED = [raw for raw in TABLE if raw.statuses and raw.statuses[-1][0] in "45"]


@pytest.mark.parametrize(
    "raw", [raw for raw in REFUSED if "cut" not in raw.name], ids=lambda raw: raw.name
)
async def test_refusal_ends_the_connection_although_the_client_does_not(
    address: Address, raw: Raw
) -> None:
    await check(address, raw, has_end=False)


BORDERS = [
    get(b"/a", *UPGRADE) + get(),
    post(*UPGRADE, INNER_LENGTH, body=SMUGGLED) + get(),
    chunked(INNER_CHUNKS, *UPGRADE) + get(),
    post(INNER_LENGTH, body=SMUGGLED) + get(),
    chunked(INNER_CHUNKS, b"A: b") + get(),
]


@pytest.mark.parametrize("sent", BORDERS)
async def test_two_segments_with_every_border(address: Address, sent: bytes) -> None:
    raw = Raw("two requests", sent, ("200", "200"))
    for cut in range(1, len(sent)):
        await check(address, raw, [cut])


# Not HEAD: where its reply ends cannot be told from the reply alone.
BASES = [raw.sent for raw in TABLE if 0 < len(raw.sent) < 2000 and b"HEAD" not in raw.sent]
SERVED_BASES = [raw.sent for raw in TABLE if raw.sent in BASES and raw.statuses == ("200",)]
PIECES = [
    *(b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b",", b";", b"0", b"5", b"-", b"+", b"\xff"),
    *(b"\r\n" + line for line in (LENGTH_5, INNER_LENGTH, CHUNKED, *UPGRADE)),
    *(b"\r\nTransfer-Encoding: gzip", b"\r\nConnection: close", b"\r\nExpect: 100-continue"),
    *(b"0\r\n\r\n", HELLO, SMUGGLED, b"HTTP/1.0", b"\r\n\r\n", b"\r\n "),
]
# What our parser reads and h11 does not: more spaces, CR alone before a request, other protocols
# of its own kind, sizes with many zeros. None of it moves the end of a message.
LAXER = re.compile(rb"[A-Z]  +|  +HTTP/|\r[A-Z]|(RTSP|ICE)/|0{20}")


def mutant(rng: random.Random) -> bytes:
    """One or two requests with some bytes added, left out, repeated or replaced."""
    bases = rng.choice((BASES, SERVED_BASES))
    sent = bytearray(b"".join(rng.choices(bases, k=rng.choice((1, 1, 2)))))
    for _ in range(rng.choice((1, 1, 2, 3))):
        start = rng.randrange(len(sent) + 1)
        end = min(len(sent), start + rng.choice((0, 0, 1, 2, rng.randrange(40))))
        sent[start:end] = rng.choice((b"", rng.choice(PIECES), 2 * sent[start:end]))
    return bytes(sent)


def borders(rng: random.Random, sent: bytes, most: int) -> list[int]:
    inner = range(1, len(sent))
    return sorted(rng.sample(inner, min(most, len(inner))))


async def test_what_is_served_is_what_another_parser_sees(
    address: Address, rng: random.Random
) -> None:
    num_served = 0
    for _ in range(NUM_MUTANTS):
        sent = mutant(rng)
        cuts = borders(rng, sent, rng.choice((0, 1, 3)))
        seen = requests_in(sent)
        found = replies_in(await exchange(address, sent, cuts))
        told = f"{found} for {sent!r} cut at {cuts}; h11 sees {seen}"
        for number, reply in enumerate(found):
            if reply.status in REFUSALS:
                assert reply is found[-1], told
                check_refusal(reply)
            elif reply.status == 200:
                if number >= len(seen):
                    assert LAXER.search(sent), told
                    break
                assert tuple(json.loads(reply.body)) == seen[number], told
                num_served += 1
    assert num_served > NUM_MUTANTS // 5, "too few are requests at all"


def requests_in(sent: bytes) -> list[Seen]:
    """Method, target and body of what h11 sees, up to the first thing that it does not take."""
    found = []
    while sent := sent.lstrip(b"\r\n"):
        server = h11.Connection(h11.SERVER, max_incomplete_event_size=32 << 10)
        server.receive_data(sent)
        server.receive_data(b"")
        request = first_request(server)
        if request is None:
            break
        found.append(request)
        if server.their_state is h11.MUST_CLOSE:
            break
        sent = bytes(server.trailing_data[0])
    return found


def first_request(server: h11.Connection) -> Seen | None:
    head, body = None, b""
    try:
        while not isinstance(event := server.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                return None
    except h11.RemoteProtocolError:
        return None
    assert head is not None
    target = re.sub(r"^https?://[^/?]*(?=[/?]|$)/?", "/", head.target.decode("latin-1"), flags=re.I)
    path, _, query = target.partition("?")
    return head.method.decode(), f"{path}?{query}", body.decode("latin-1")
