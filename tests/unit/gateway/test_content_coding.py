"""Compressed request bodies: every coding, chains of them, and what they may not do to us."""

from __future__ import annotations

import gzip
import json
import random
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from starlette.exceptions import HTTPException

from millrace.core.errors import InvalidRequest
from millrace.gateway.http.content_coding import (
    MAX_MEMBERS,
    PIECE_BYTES,
    DecodedTooLarge,
    codings_of,
    decode,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

Encode = Callable[[bytes], bytes]
BODY = json.dumps({"prompt": "hi", "max_tokens": 1}).encode()
LIMIT = 1 << 20


def raw_deflate(data: bytes) -> bytes:
    return zlib.compress(data)[2:-4]


def two_members(data: bytes) -> bytes:
    return gzip.compress(data[:5]) + gzip.compress(data[5:])


def two_frames(data: bytes) -> bytes:
    return zstd.compress(data[:5]) + zstd.compress(data[5:])


ENCODED = [
    (["gzip"], gzip.compress(BODY)),
    (["GZip"], gzip.compress(BODY)),
    (["x-gzip"], gzip.compress(BODY)),
    (["gzip"], two_members(BODY)),
    (["gzip"], gzip.compress(BODY) + gzip.compress(b"")),
    (["deflate"], zlib.compress(BODY)),
    (["deflate"], raw_deflate(BODY)),
    (["zstd"], zstd.compress(BODY)),
    (["zstd"], two_frames(BODY)),
    (["zstd"], b"\x50\x2a\x4d\x18" + b"\5\0\0\0skip!" + zstd.compress(BODY)),
    (["gzip, zstd"], zstd.compress(gzip.compress(BODY))),
    (["gzip", "zstd"], zstd.compress(gzip.compress(BODY))),
    (["identity, gzip , "], gzip.compress(BODY)),
    (["gzip,gzip,gzip"], gzip.compress(gzip.compress(gzip.compress(BODY)))),
    (["identity"], BODY),
    ([""], BODY),
    ([], BODY),
]


@pytest.mark.parametrize(("values", "raw"), ENCODED)
def test_content_is_what_was_encoded(values: list[str], raw: bytes) -> None:
    assert decode(raw, codings_of(values), LIMIT) == BODY


@pytest.mark.parametrize("seed", range(40))
def test_any_content_comes_back(seed: int) -> None:
    rng = random.Random(seed)
    size = rng.choice((1, 2, 1000, PIECE_BYTES - 1, PIECE_BYTES, 3 * PIECE_BYTES + 1))
    content = rng.randbytes(size)
    encode: dict[str, Encode] = {
        "gzip": two_members,
        "deflate": zlib.compress,
        "zstd": two_frames,
    }
    names = rng.choices(list(encode), k=rng.randrange(1, 4))
    raw = content
    for name in names:
        raw = encode[name](raw)
    assert decode(raw, codings_of(names), size + 4096) == content


@pytest.mark.parametrize("value", ["br", "compress", "gzip, br", "gzip;q=1", "*", "gzip " * 2, "x"])
def test_unknown_coding_is_415(value: str) -> None:
    with pytest.raises(HTTPException) as refused:
        codings_of([value])
    assert refused.value.status_code == 415
    assert "content-encoding" in refused.value.detail
    assert refused.value.headers == {"accept-encoding": "gzip, deflate, zstd, identity"}


def test_long_chain_is_415() -> None:
    with pytest.raises(HTTPException, match="up to 3"):
        codings_of(["gzip, gzip", "gzip, gzip"])


DAMAGED = [
    *((name, BODY) for name in ("gzip", "deflate", "zstd")),
    *((name, b"") for name in ("gzip", "deflate", "zstd")),
    ("gzip", gzip.compress(BODY)[:-1]),
    ("gzip", gzip.compress(BODY)[:-8] + bytes(8)),
    ("gzip", gzip.compress(BODY) + b"x"),
    ("gzip", zlib.compress(BODY)),
    ("deflate", zlib.compress(BODY)[:-1]),
    ("deflate", raw_deflate(BODY)[:-1]),
    ("zstd", zstd.compress(BODY)[:-1]),
    ("zstd", zstd.compress(BODY) + b"x"),
]


@pytest.mark.parametrize(("name", "raw"), DAMAGED)
def test_body_that_is_not_so_encoded_is_refused(name: str, raw: bytes) -> None:
    with pytest.raises(InvalidRequest, match=f"not {name}"):
        decode(raw, (name,), LIMIT)


@pytest.mark.parametrize(
    ("name", "encode"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("zstd", zstd.compress)],
)
def test_limit_is_that_of_the_decoded_body(name: str, encode: Encode) -> None:
    assert len(decode(encode(bytes(LIMIT)), (name,), LIMIT)) == LIMIT
    with pytest.raises(DecodedTooLarge):
        decode(encode(bytes(LIMIT + 1)), (name,), LIMIT)


BOMB = bytes(1 << 28)
BOMBS = [
    (("gzip",), gzip.compress(BOMB, 1)),
    (("deflate",), zlib.compress(BOMB, 1)),
    (("zstd",), zstd.compress(BOMB)),
    (("gzip", "gzip"), gzip.compress(gzip.compress(BOMB, 1))),
    (("zstd", "gzip"), gzip.compress(zstd.compress(BOMB))),
]


@pytest.mark.parametrize(("codings", "raw"), BOMBS, ids=str)
def test_bomb_costs_little_memory_and_time(codings: tuple[str, ...], raw: bytes) -> None:
    tracemalloc.start()
    began_s = time.perf_counter()
    with pytest.raises(DecodedTooLarge):
        decode(raw, codings, LIMIT)
    elapsed_s = time.perf_counter() - began_s
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * LIMIT
    assert elapsed_s < 1.0


@pytest.mark.parametrize(
    ("name", "empty"), [("gzip", gzip.compress(b"")), ("zstd", zstd.compress(b""))]
)
def test_many_empty_members_are_refused(name: str, empty: bytes) -> None:
    began_s = time.perf_counter()
    with pytest.raises(InvalidRequest, match=str(MAX_MEMBERS)):
        decode(empty * (8 * LIMIT // len(empty)), (name,), LIMIT)
    assert time.perf_counter() - began_s < 1.0


def test_zstd_window_is_bounded() -> None:
    """A frame may ask for gigabytes."""
    options: dict[int, int] = {zstd.CompressionParameter.window_log: 27}
    compressor = zstd.ZstdCompressor(options=options)
    frame = compressor.compress(bytes(1000)) + compressor.flush()
    with pytest.raises(InvalidRequest):
        decode(frame, ("zstd",), LIMIT)


@pytest.mark.parametrize(
    ("coding", "raw", "status"),
    [
        ("gzip", gzip.compress(BODY), 200),
        ("gzip", BODY, 400),
        ("br", BODY, 415),
        ("gzip", gzip.compress(bytes(9 << 20)), 413),
        ("gzip", gzip.compress(b"[1]"), 400),
    ],
)
async def test_routes_take_encoded_bodies(
    gateway: Harness, coding: str, raw: bytes, status: int
) -> None:
    headers = {"content-type": "application/json", "content-encoding": coding}
    async with gateway.client() as client:
        reply = await client.post("/v1/completions", content=raw, headers=headers)
    assert reply.status_code == status
    if status == 415:
        assert reply.headers["accept-encoding"] == "gzip, deflate, zstd, identity"
    if status == 413:
        assert str(8 << 20) in reply.json()["error"]["message"]
