"""The access log of the HTTP edge: which route a path belongs to, and the end of each request."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.trace import Span
from starlette.routing import Route
from starlette.types import Scope

from millrace.core.errors import Unavailable
from millrace.gateway.access_log import AccessLog
from millrace.gateway.call_facts import UNKNOWN_ROUTE, CallFacts, begin_facts
from millrace.telemetry.names import ATTR_HTTP_METHOD, ATTR_HTTP_ROUTE, ATTR_HTTP_STATUS_CODE

EDGE = "http"
PROBES = frozenset({"/health", "/ready", "/metrics", "/cache/stats"})
# Any other word would be a label of its own.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER_METHOD = "OTHER"
# A client that has gone before its reply began; nginx gave it this number.
CLIENT_GONE = 499


def turned_away(log: AccessLog, client: tuple[str, int] | None) -> None:
    """Tells of a connection that was too many, and whose request was not read."""
    facts = CallFacts(EDGE, method=OTHER_METHOD, peer=_address(client))
    facts.error = Unavailable("too many connections")
    log.http_ended(facts, 503)


class HttpAccess:
    """Begins and ends the facts of every request."""

    def __init__(self, routes: Sequence[Route], log: AccessLog) -> None:
        self._literal = frozenset(route.path for route in routes if "{" not in route.path)
        self._patterns: Mapping[str, re.Pattern[str]] = {
            route.path: route.path_regex for route in routes if "{" in route.path
        }
        self._log = log
        log.expect_routes(
            (route.path, method)
            for route in routes
            for method in sorted((route.methods or set()) - {"HEAD"})
        )
        log.expect_routes((UNKNOWN_ROUTE, method) for method in ("GET", "POST"))

    def begin(self, scope: Scope) -> CallFacts:
        """Of the request of this task."""
        path, method = scope["path"], scope["method"]
        route = self.route_of(path)
        return begin_facts(
            CallFacts(
                EDGE,
                method=method if method in METHODS else OTHER_METHOD,
                route=route,
                path=path if route == UNKNOWN_ROUTE else "",
                peer=_address(scope.get("client")),
                is_probe=path in PROBES,
            )
        )

    def end(self, facts: CallFacts, status: int | None) -> None:
        """The reply is out with `status`, or (None) there was nobody for it."""
        if facts.call is not None:
            _mark(facts.call.span, facts, status)
        self._log.http_ended(facts, CLIENT_GONE if status is None else status)

    def route_of(self, path: str) -> str:
        """The pattern that a path belongs to."""
        if path in self._literal:
            return path
        matching = (route for route, pattern in self._patterns.items() if pattern.match(path))
        return next(matching, UNKNOWN_ROUTE)


def _mark(span: Span, facts: CallFacts, status: int | None) -> None:
    if span.is_recording():
        attributes: dict[str, Any] = {
            ATTR_HTTP_METHOD: facts.method,
            ATTR_HTTP_ROUTE: facts.route,
        }
        if status is not None:
            attributes[ATTR_HTTP_STATUS_CODE] = status
        span.set_attributes(attributes)


def _address(client: tuple[str, int] | None) -> str:
    if client is None:
        return ""
    host, port = client
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
