"""Reading a request's JSON body strictly: size, content type, encoding, depth, duplicate keys."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from starlette.exceptions import HTTPException
from starlette.requests import Request

from millrace.core.errors import InvalidRequest, PayloadTooLarge

MAX_DEPTH = 64

# A whole string, or one bracket outside of strings.
_STRING_OR_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{]|[\]}]', re.DOTALL)


async def read_json(request: Request, max_bytes: int) -> dict[str, Any]:
    """The body as an object.

    Raises `InvalidRequest` for what is not strict JSON, `PayloadTooLarge`, HTTPException for 415.
    """
    _check_content_type(request)
    raw = await _read(request, max_bytes)
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


async def _read(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:20]) > max_bytes:
        raise _too_large(declared[:20], max_bytes)
    parts = bytearray()
    async for part in request.stream():
        parts += part
        if len(parts) > max_bytes:
            raise _too_large(f"over {max_bytes}", max_bytes)
    return bytes(parts)


def _too_large(size: str, max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body has {size} bytes; the limit is {max_bytes}", metadata={"max": str(max_bytes)}
    )


def _check_depth(raw: bytes) -> None:
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(raw):
        first = raw[match.start()]
        if first in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidRequest(f"the body is nested deeper than {MAX_DEPTH} levels")
        elif first in b"]}":
            depth -= 1


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
