"""Errors as the OpenAI API shows them: one body shape for every route and every status."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from millrace.core.errors import (
    CODE_KEY,
    Aborted,
    ConfigError,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    MillraceError,
    OutOfStorage,
    Overloaded,
    Unavailable,
)
from millrace.wire.status import http_status_of

from .edge import call_of
from .near_paths import near_path

UNSUPPORTED_PARAMETER = "unsupported_parameter"

_TYPES: dict[type[MillraceError], str] = {
    Overloaded: "rate_limit_error",
    OutOfStorage: "server_error",
    Unavailable: "service_unavailable_error",
    DeadlineExceeded: "timeout_error",
    Aborted: "aborted_error",
    ConfigError: "server_error",
    InternalError: "server_error",
}
# What a second try may cure; everything else fails the same way again.
_WORTH_A_RETRY = (Overloaded, Unavailable, InternalError)
_DEFAULT_RETRY_AFTER_S = 1.0
_HTTP_CODES = {404: "unknown_url", 405: "method_not_allowed", 415: "unsupported_media_type"}


def unsupported_parameter(
    field: str, feature: str = "", say: str = "", *, advice: str = ""
) -> InvalidRequest:
    """A field that some API has and this server does not do; `say` names what to send instead."""
    what = advice or (
        f"{field} is no field of this server; say {say}"
        if say
        else f"{field}: {feature} is not supported by this server"
    )
    return InvalidRequest(what, field=field, metadata={CODE_KEY: UNSUPPORTED_PARAMETER})


def error_body(error: MillraceError) -> dict[str, Any]:
    """The `error` object of a reply or of a chunk."""
    code = error.metadata.get(CODE_KEY)
    if code is None and type(error) is not InvalidRequest:
        code = error.reason.lower()
    kind = next((_TYPES[cls] for cls in type(error).__mro__ if cls in _TYPES), None)
    return {
        "error": {
            "message": error.message,
            "type": kind or "invalid_request_error",
            "param": error.field,
            "code": code,
        }
    }


def error_response(error: MillraceError) -> JSONResponse:
    """The whole reply, with the headers that retrying clients read."""
    status = http_status_of(error)
    headers = {}
    if isinstance(error, (Overloaded, Unavailable)):
        retry_after_s = error.retry_after_s or _DEFAULT_RETRY_AFTER_S
        headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
    if not isinstance(error, _WORTH_A_RETRY):
        headers["x-should-retry"] = "false"
    return JSONResponse(error_body(error), status, headers)


async def on_millrace_error(request: Request, exc: Exception) -> JSONResponse:
    """Exception handler for the error tree."""
    error = exc if isinstance(exc, MillraceError) else InternalError("internal error")
    call_of(request).error = error
    return error_response(error)


async def on_http_error(request: Request, exc: Exception) -> JSONResponse:
    """Exception handler for what the router itself refuses: path, verb, content type."""
    if not isinstance(exc, HTTPException):
        return await on_millrace_error(request, exc)
    status, detail = exc.status_code, exc.detail
    if status == 404:
        detail = f"there is no {request.method} {request.url.path} here{_hint(request)}"
    elif status == 405:
        allowed = (exc.headers or {}).get("Allow")
        detail = f"{request.method} is not allowed on {request.url.path}, only {allowed}"
    call_of(request).error = InvalidRequest(detail)
    body = {
        "message": detail,
        "type": "invalid_request_error",
        "param": None,
        "code": _HTTP_CODES.get(status, HTTPStatus(status).phrase.lower().replace(" ", "_")),
    }
    headers = {**(exc.headers or {}), "x-should-retry": "false"}
    return JSONResponse({"error": body}, status, headers)


def _hint(request: Request) -> str:
    paths = [getattr(route, "path", "{") for route in request.app.routes]
    near = near_path(request.url.path, [path for path in paths if "{" not in path])
    return f"; did you mean {near}?" if near else ""
