"""Around every route: request id and trace on every reply, the root span, and defects as 500."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from millrace.core.errors import InternalError
from millrace.gateway.calls import Call, begin_call, begin_untraced_call

from .edge import CALL_KEY
from .errors import error_response

_log = logging.getLogger(__name__)


class CallMiddleware:
    """Makes a `Call` per request; `operations` names the paths whose POST generates.

    Only these get a span: a trace per health probe would push out those of requests.
    """

    def __init__(self, app: ASGIApp, operations: Mapping[str, str]) -> None:
        self._app = app
        self._operations = operations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = self._begin(scope)
        scope[CALL_KEY] = call
        ids = [(key.encode(), value.encode()) for key, value in call.headers]
        is_started = False

        async def send_with_ids(message: Message) -> None:
            nonlocal is_started
            if not is_started and message["type"] == "http.response.start":
                is_started = True
                message["headers"] = [*message.get("headers", ()), *ids]
            await send(message)

        try:
            await self._app(scope, receive, send_with_ids)
        except Exception:
            _log.exception("request %s failed", call.request_id)
            call.error = InternalError(f"internal error; the request id is {call.request_id}")
            # Once the reply is under way only the connection can tell: it is closed unfinished.
            if not is_started:
                await error_response(call.error)(scope, receive, send_with_ids)
        finally:
            call.end()

    def _begin(self, scope: Scope) -> Call:
        carrier = {
            key.decode("latin-1"): value.decode("latin-1")
            for key, value in scope["headers"]
            if key in (b"traceparent", b"tracestate")
        }
        operation = self._operations.get(scope["path"]) if scope["method"] == "POST" else None
        return begin_untraced_call(carrier) if operation is None else begin_call(operation, carrier)
