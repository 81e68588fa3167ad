"""Around every route: request id and trace on every reply, the root span, and defects as 500."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from millrace.core.errors import InternalError
from millrace.gateway.calls import Call, begin_call, begin_untraced_call
from millrace.gateway.drain_rate import Load

from .access import HttpAccess
from .edge import CALL_KEY
from .errors import error_response
from .origins import AllowedOrigins
from .rate_limit import rate_limit_headers

_log = logging.getLogger(__name__)


class CallMiddleware:
    """Makes a `Call` per request; `operations` names the paths whose POST generates.

    Of the others only what fails gets a span: one per health probe would push out those of
    requests. Only these get the headers of limits, of the `load` then. Every reply gets the headers
    that let pages of `origins` read it. `access` hears of all.
    """

    def __init__(
        self,
        app: ASGIApp,
        operations: Mapping[str, str],
        load: Callable[[], Load],
        origins: AllowedOrigins,
        access: HttpAccess,
    ) -> None:
        self._app = app
        self._operations = operations
        self._load = load
        self._origins = origins
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        facts = self._access.begin(scope)
        call = self._begin(scope)
        scope[CALL_KEY] = call
        is_operation = self._operation_of(scope) is not None
        origin = Headers(scope=scope).get("origin")
        status: int | None = None

        async def send_with_ids(message: Message) -> None:
            nonlocal status
            if status is None and message["type"] == "http.response.start":
                status = message["status"]
                added = [*call.headers, *self._origins.reply_headers(origin)]
                if is_operation:
                    added += rate_limit_headers(self._load())
                encoded = [(key.encode(), value.encode()) for key, value in added]
                message["headers"] = [*message.get("headers", ()), *encoded]
            await send(message)

        try:
            await self._app(scope, receive, send_with_ids)
        except Exception:
            _log.exception("a request failed", extra={"request_id": call.request_id})
            call.error = InternalError(f"internal error; the request id is {call.request_id}")
            # Once the reply is under way only the connection can tell: it is closed unfinished.
            if status is None:
                await error_response(call.error)(scope, receive, send_with_ids)
        finally:
            self._access.end(facts, status)
            call.end()

    def _begin(self, scope: Scope) -> Call:
        carrier = {
            key.decode("latin-1"): value.decode("latin-1")
            for key, value in scope["headers"]
            if key in (b"traceparent", b"tracestate")
        }
        operation = self._operation_of(scope)
        return begin_untraced_call(carrier) if operation is None else begin_call(operation, carrier)

    def _operation_of(self, scope: Scope) -> str | None:
        return self._operations.get(scope["path"]) if scope["method"] == "POST" else None
