"""Reading a request strictly: media types, size, encoding, depth, duplicate keys."""

from __future__ import annotations

import asyncio
import json
import re
from itertools import accumulate
from typing import Any, NoReturn

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from millrace.core.errors import Aborted, InvalidRequest, PayloadTooLarge

from .content_coding import DecodedTooLarge, codings_of, decode

MAX_DEPTH = 64
# Lists and objects in one body: a few of 3 bytes each fill a body, and hold the loop for seconds.
MAX_CONTAINERS = 100_000

_ACCEPTED = {"*/*", "application/*", "application/json", "text/*", "text/event-stream"}
# A whole string, or one that never ends. Possessive throughout, so that no byte is read twice:
# with backtracking, 80 kB of escaped quotes took 12 s.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


async def read_json(request: Request, max_bytes: int) -> dict[str, Any]:
    """The body as an object.

    Raises `InvalidRequest` for what is not strict JSON, `PayloadTooLarge`, `Aborted` where the
    client goes away before its end, HTTPException for 406 and 415 and for a body that fails.
    """
    _check_content_type(request)
    _check_accept(request)
    codings = codings_of(request.headers.getlist("content-encoding"))
    raw = await _read(request, max_bytes)
    if codings:
        try:
            # Beside the loop: it may take as long as some tokens.
            raw = await asyncio.to_thread(decode, raw, codings, max_bytes)
        except DecodedTooLarge as exc:
            raise _too_large(f"over {max_bytes} decoded", max_bytes) from exc
    _check_depth(raw)
    try:
        body = json.loads(raw.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"the body is not UTF-8 at byte {exc.start}") from exc
    except json.JSONDecodeError as exc:
        raise InvalidRequest(
            f"the body is not JSON: {exc.msg} at line {exc.lineno}, column {exc.colno}"
        ) from exc
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest("the body is not JSON that this server reads") from exc
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object")
    return body


def _check_content_type(request: Request) -> None:
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(
            415, f"content-type is {content_type[:100]!r}; it must be application/json"
        )


def _check_accept(request: Request) -> None:
    accept = request.headers.get("accept", "").strip()
    # Clients ask for JSON even where they want a stream, so either will do for both.
    ranges = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    if accept and not ranges & _ACCEPTED:
        raise HTTPException(
            406, f"accept is {accept[:100]!r}; replies are application/json or text/event-stream"
        )


async def _read(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:20]) > max_bytes:
        raise _too_large(declared[:20], max_bytes)
    parts = bytearray()
    try:
        async for part in request.stream():
            parts += part
            if len(parts) > max_bytes:
                raise _too_large(f"over {max_bytes}", max_bytes)
    except ClientDisconnect as exc:
        raise Aborted("the client went away") from exc
    return bytes(parts)


def _too_large(size: str, max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body has {size} bytes; the limit is {max_bytes}", metadata={"max": str(max_bytes)}
    )


def _check_depth(raw: bytes) -> None:
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    brackets = _STRING.sub(b"", raw).translate(None, _NOT_BRACKETS)
    num_containers = brackets.count(b"[") + brackets.count(b"{")
    if num_containers > MAX_CONTAINERS:
        raise InvalidRequest(
            f"the body has {num_containers} lists and objects; the limit is {MAX_CONTAINERS}",
            metadata={"value": str(num_containers), "max": str(MAX_CONTAINERS)},
        )
    # Closing brackets beyond the opening ones are an error that the parser tells.
    upto = brackets[: 4 * MAX_CONTAINERS]
    if max(accumulate(map(_STEPS.__getitem__, upto)), default=0) > MAX_DEPTH:
        raise InvalidRequest(f"the body is nested deeper than {MAX_DEPTH} levels")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise InvalidRequest(f"the key {key[:64]!r} stands twice in one object", field=key)
            seen.add(key)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequest(f"{name} is not a JSON number")
