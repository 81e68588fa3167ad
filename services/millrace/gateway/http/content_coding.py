"""Content-Encoding of request bodies: gzip, deflate and zstd, decoded within the limit of bodies.

RFC 9110 8.4.1, RFC 1950 to 1952, RFC 8878.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Sequence
from typing import Any

from starlette.exceptions import HTTPException

from millrace.core.errors import InvalidRequest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# gzip members and zstd frames in one body: an empty one has a few bytes and takes microseconds.
MAX_MEMBERS = 1024
MAX_CODINGS = 3
PIECE_BYTES = 64 << 10
# RFC 8878 3.1.1.1.2: what every decoder supports, and what one should refuse to exceed.
_MAX_ZSTD_WINDOW_LOG = 23
_GZIP_WBITS, _ZLIB_WBITS, _RAW_WBITS = 31, 15, -15


class DecodedTooLarge(Exception):
    """The decoded body is over the limit."""


def codings_of(values: Sequence[str]) -> tuple[str, ...]:
    """Codings in the order they were applied. Raises HTTPException 415 for what is not known."""
    names = [name.strip().lower() for value in values for name in value.split(",")]
    codings = tuple(name for name in names if name not in ("", "identity"))
    unknown = [name for name in codings if name not in _DECODERS]
    if unknown or len(codings) > MAX_CODINGS:
        known = ", ".join((*_NAMES, "identity"))
        raise HTTPException(
            415,
            f"content-encoding is {', '.join(codings)[:100]!r}; "
            f"it must be up to {MAX_CODINGS} of {known}",
            {"accept-encoding": known},
        )
    return codings


def decode(raw: bytes, codings: Sequence[str], max_bytes: int) -> bytes:
    """The content behind `codings`.

    Raises `DecodedTooLarge` as soon as any stage has more than `max_bytes`, and `InvalidRequest`
    for a body that is not so encoded.
    """
    for name in reversed(codings):
        try:
            raw = _decode_members(raw, _DECODERS[name], max_bytes)
        except (zlib.error, zstd.ZstdError, EOFError) as exc:
            raise InvalidRequest(f"the body is not {name}, which content-encoding says") from exc
    return raw


def _decode_members(raw: bytes, decoder_for: Callable[[memoryview], Any], max_bytes: int) -> bytes:
    """Raises what the decoders raise, and EOFError for a member that is cut."""
    decoded, position, num_members, decoder = bytearray(), 0, 0, None
    view = memoryview(raw)
    while position < len(raw):
        # In pieces: behind each member its decoder copies what is left of its input.
        piece = view[position : position + PIECE_BYTES]
        if decoder is None:
            num_members += 1
            decoder = decoder_for(piece)
        # One byte more than may be, to tell the limit from what is over it.
        decoded += decoder.decompress(piece, max_bytes + 1 - len(decoded))
        if len(decoded) > max_bytes:
            raise DecodedTooLarge
        position += len(piece)
        if decoder.eof:
            position -= len(decoder.unused_data)
            decoder = None
        if num_members > MAX_MEMBERS:
            raise InvalidRequest(f"the body has more than {MAX_MEMBERS} compressed members")
    if decoder is not None or not raw:
        raise EOFError
    return bytes(decoded)


def _gzip(raw: memoryview) -> Any:
    return zlib.decompressobj(_GZIP_WBITS)


def _deflate(raw: memoryview) -> Any:
    """zlib's format, or without it, as some clients send it in spite of RFC 9110 8.4.1.2."""
    is_zlib = len(raw) > 1 and raw[0] & 0x0F == 8 and (raw[0] << 8 | raw[1]) % 31 == 0
    return zlib.decompressobj(_ZLIB_WBITS if is_zlib else _RAW_WBITS)


def _zstd(raw: memoryview) -> Any:
    limit: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _MAX_ZSTD_WINDOW_LOG}
    return zstd.ZstdDecompressor(options=limit)


_DECODERS: dict[str, Callable[[memoryview], Any]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "zstd": _zstd,
}
_NAMES = ("gzip", "deflate", "zstd")
