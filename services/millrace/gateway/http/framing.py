"""What the head of a request says about its framing, checked as RFC 9112 asks.

The parser checks the syntax of a message. Here stands what it leaves to its user.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from httptools import HttpParserError, HttpParserInvalidMethodError
from starlette.exceptions import HTTPException

VERSIONS = ("1.0", "1.1")
# RFC 9112 3.2 with RFC 3986 3.2.2: a name or an address, and a port.
_HOST = re.compile(
    rb"(?:(?:[\w\-.~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?", re.ASCII
)
_ABSOLUTE_TARGET = re.compile(rb"https?://([^/?]+)(.*)", re.IGNORECASE | re.DOTALL)
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) [^\s\x00-\x20]+ HTTP/1\.[01]\r\n")
_METHODS = frozenset(
    (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT")
)

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Framing:
    """A request that may be served. `target` is a path with its query, or `*`.

    `host` replaces the Host field if the target named another.
    """

    target: bytes
    host: bytes | None
    expects_continue: bool


def check_head(method: str, version: str, target: bytes, headers: Headers) -> Framing:
    """How to read the request; `headers` have lower-case names.

    Raises HTTPException with 400, 417, 501 or 505, after which the connection must be closed.
    """
    if version not in VERSIONS:
        raise HTTPException(505, f"HTTP/{version} is not served here; HTTP/1.1 and HTTP/1.0 are")
    if method == "CONNECT":
        raise HTTPException(501, "CONNECT is for proxies; this server is none")
    _check_host(version, _values(headers, b"host"))
    _check_transfer_encoding(version, _values(headers, b"transfer-encoding"))
    framing = _target(method, target)
    expectations = _members(headers, b"expect")
    # RFC 9110 10.1.1: HTTP/1.0 knows no expectations.
    if version == "1.0" or not expectations:
        return framing
    if unknown := [each for each in expectations if each != b"100-continue"]:
        raise HTTPException(417, f"expect is {_shown(unknown[0])}; only 100-continue is known")
    return replace(framing, expects_continue=_has_body(headers))


def syntax_error(error: HttpParserError, received: bytes) -> HTTPException:
    """What to answer to `received`, of which the parser says that it is not HTTP."""
    if isinstance(error, HttpParserInvalidMethodError):
        # RFC 9110 9.1; of a request behind others the line is not known.
        line = _REQUEST_LINE.match(received)
        if line is not None and line[1] not in _METHODS:
            return HTTPException(501, f"the method {_shown(line[1])} is not known here")
    if str(error) == "Pause on PRI/Upgrade":
        return HTTPException(505, "HTTP/2 is not served here; HTTP/1.1 is")
    return HTTPException(400, f"this is not HTTP/1.1: {error}")


def head_without_upgrade(method: bytes, version: str, target: bytes, headers: Headers) -> bytes:
    """The head once more, for a parser that is not to see the Upgrade field."""
    lines = [b"%s %s HTTP/%s" % (method, target, version.encode())]
    lines += [b"%s: %s" % each for each in headers if each[0] != b"upgrade"]
    return b"\r\n".join((*lines, b"", b""))


def _check_host(version: str, hosts: list[bytes]) -> None:
    """RFC 9112 3.2."""
    if not hosts and version == "1.1":
        raise HTTPException(400, "the host field is missing")
    if len(hosts) > 1:
        raise HTTPException(400, f"{len(hosts)} host fields; there must be one")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise HTTPException(400, f"host is {_shown(hosts[0])}; it must be a host and a port")


def _check_transfer_encoding(version: str, values: list[bytes]) -> None:
    """RFC 9112 6.1 and 6.3; the parser refuses it beside a Content-Length."""
    if not values:
        return
    if version == "1.0":
        raise HTTPException(400, "HTTP/1.0 has no transfer-encoding")
    codings = [each.strip().lower() for value in values for each in value.split(b",")]
    if codings[-1] != b"chunked":
        raise HTTPException(400, f"transfer-encoding ends with {_shown(codings[-1])}, not chunked")
    if len(codings) > 1:
        raise HTTPException(501, f"transfer-encoding {_shown(codings[0])} is not known; chunked is")


def _target(method: str, target: bytes) -> Framing:
    """RFC 9112 3.2.1 to 3.2.4."""
    host = None
    if absolute := _ABSOLUTE_TARGET.fullmatch(target):
        host, target = absolute[1], absolute[2]
        if not _HOST.fullmatch(host):
            raise HTTPException(400, f"the target's host is {_shown(host)}; it must be a host")
        if not target.startswith(b"/"):
            target = b"*" if method == "OPTIONS" and not target else b"/" + target
    is_known = target.startswith(b"/") or (target == b"*" and method == "OPTIONS")
    if not is_known or b"#" in target:
        raise HTTPException(400, f"the target is {_shown(target)}; it must be a path")
    return Framing(target, host, expects_continue=False)


def _has_body(headers: Headers) -> bool:
    length = _values(headers, b"content-length")
    return bool(length and int(length[0])) or bool(_values(headers, b"transfer-encoding"))


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for each, value in headers if each == name]


def _members(headers: Headers, name: bytes) -> list[bytes]:
    values = b",".join(_values(headers, name)).lower().split(b",")
    return [each.strip() for each in values if each.strip()]


def _shown(value: bytes) -> str:
    return repr(value[:100].decode("latin-1"))
