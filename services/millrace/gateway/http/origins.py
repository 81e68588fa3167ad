"""Which web pages may read replies: CORS, https://fetch.spec.whatwg.org/#http-cors-protocol."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from millrace.core.errors import ConfigError

ANY = "*"
# The pages of this machine, if nobody else can reach the gateway.
LOOPBACK = "loopback"
_LOOPBACK_ORIGINS = tuple(
    f"{scheme}://{host}:*"
    for scheme in ("http", "https")
    for host in ("localhost", "127.0.0.1", "[::1]")
)
_ORIGIN = re.compile(r"([a-z][a-z0-9+.\-]*)://([^\s/:*\[\]]+|\[[0-9a-f:.]+\])(?::([0-9]+|\*))?")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")
_DEFAULT_PORTS = {"http": "80", "https": "443"}

_METHODS = "GET, HEAD, POST"
_REQUEST_HEADERS = frozenset(
    ("authorization", "content-type", "idempotency-key", "x-request-id", "traceparent")
)
# `*` is every header, for requests without credentials, which is all that we allow.
_EXPOSED_HEADERS = "x-request-id, traceresponse, *"
_MAX_AGE_S = 600


@dataclass(frozen=True, slots=True)
class AllowedOrigins:
    """`scheme://host[:port]`, with `*` for any port; `*` for every page; `null` for those without
    an origin.
    """

    patterns: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, entries: Iterable[str], *, is_loopback: bool) -> AllowedOrigins:
        """Raises `ConfigError` for what is no origin. `is_loopback`: of the address bound to."""
        patterns: set[str] = set()
        for entry in entries:
            if entry == LOOPBACK:
                patterns.update(_LOOPBACK_ORIGINS if is_loopback else ())
            else:
                patterns.add(_pattern(entry))
        return cls(frozenset(patterns))

    def allows(self, origin: str) -> bool:
        """True if a page of this origin may read replies."""
        if ANY in self.patterns or origin in self.patterns:
            return True
        parts = _ORIGIN.fullmatch(origin.lower())
        if parts is None:
            return False
        scheme, host, port = parts.groups()
        port = port or _DEFAULT_PORTS.get(scheme, "")
        return not self.patterns.isdisjoint((f"{scheme}://{host}:{port}", f"{scheme}://{host}:*"))

    def reply_headers(self, origin: str | None) -> list[tuple[str, str]]:
        """What a reply to this page says, and to any other if replies differ."""
        if not self.patterns:
            return []
        if ANY in self.patterns:
            allowed, headers = ANY, []
        else:
            allowed, headers = origin or "", [("vary", "origin")]
        if origin is not None and self.allows(origin):
            headers.append(("access-control-allow-origin", allowed))
            headers.append(("access-control-expose-headers", _EXPOSED_HEADERS))
        return headers

    def preflight_headers(self, requested: str) -> dict[str, str]:
        """What an allowed page may send: our headers and, as clients add their own, what it asks
        for (`requested`).
        """
        names = {name.strip() for name in requested.lower().split(",")}
        names = {name for name in names if _HEADER_NAME.fullmatch(name)} | _REQUEST_HEADERS
        return {
            "access-control-allow-methods": _METHODS,
            "access-control-allow-headers": ", ".join(sorted(names)),
            "access-control-max-age": str(_MAX_AGE_S),
        }


def _pattern(entry: str) -> str:
    """As `allows` compares it: with a port."""
    if entry in (ANY, "null"):
        return entry
    parts = _ORIGIN.fullmatch(entry.lower())
    if parts is None:
        raise ConfigError(
            f"cors_origins: {entry!r} is no origin; write scheme://host[:port] (port * for any), "
            f"{ANY}, null or {LOOPBACK}",
            field="cors_origins",
        )
    scheme, host, port = parts.groups()
    return f"{scheme}://{host}:{port or _DEFAULT_PORTS.get(scheme, '')}"
