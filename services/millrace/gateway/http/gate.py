"""In front of every route: requests that the connection refused, names that are not ours, and
preflights of web pages.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from . import extensions
from .errors import on_http_error
from .hosts import AllowedHosts
from .origins import AllowedOrigins


class Gate:
    """ASGI; replies get their CORS headers where they get their ids."""

    def __init__(self, app: ASGIApp, hosts: AllowedHosts, origins: AllowedOrigins) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            reply = self._reply(scope)
        except HTTPException as error:
            reply = await on_http_error(Request(scope), error)
        await (reply or self._app)(scope, receive, send)

    def _reply(self, scope: Scope) -> Response | None:
        refusal: HTTPException | None = scope.get("extensions", {}).get(extensions.REFUSAL)
        if refusal is not None:
            raise refusal
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._hosts.allows(host):
            raise HTTPException(
                421,
                f"host is {host[:100]!r}, which is not a name of this gateway; if it is one, add "
                "it to the gateway's setting allowed_hosts",
            )
        if scope["method"] != "OPTIONS":
            return None
        if "origin" in headers and "access-control-request-method" in headers:
            return self._preflight(headers)
        return Response(status_code=204) if scope["path"] == "*" else None

    def _preflight(self, headers: Headers) -> Response:
        origin = headers["origin"]
        if not self._origins.allows(origin):
            raise HTTPException(
                403,
                f"origin is {origin[:100]!r}, whose pages may not use this gateway; to let them, "
                "add it to the gateway's setting cors_origins",
            )
        requested = headers.get("access-control-request-headers", "")
        return Response(status_code=204, headers=self._origins.preflight_headers(requested))
