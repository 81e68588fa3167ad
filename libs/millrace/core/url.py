"""URLs of servers, which may hold a password: read strictly, shown without it.

The libraries that connect read a URL with an unencoded `#`, `?` or `/` in its password as another
one, and quote parts of it in their errors. So it is read here, once, and refused if it can mean
two things; no error quotes any part of it but the scheme.
"""

from __future__ import annotations

import re
from base64 import b64encode
from ipaddress import AddressValueError, IPv6Address
from typing import ClassVar
from urllib.parse import quote, unquote_to_bytes

from .address import bare_host, join_host_port, split_host_port
from .secret import HIDDEN, Secret

ENCODING_HINT = (
    "in a user name or password each of # ? / @ : % must be percent-encoded "
    "(%23 %3F %2F %40 %3A %25)"
)
_SHAPE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)(.*)", re.DOTALL)
_UNWRITABLE = re.compile(r"[\x00-\x20\x7f]")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_NO_HOST = re.compile(r"[\[\]<>\"\\^`{|},;=%]")


class Url(Secret):
    """scheme://user:password@host:port/path?query; `str` hides user data and the query.

    Raises `ValueError` that says what is wrong without the value. `host` is bare, `port` 0 if none
    is named; `username` and `password` are decoded.
    """

    __slots__ = ("host", "password", "path", "port", "query", "scheme", "username")

    SCHEMES: ClassVar[tuple[str, ...]] = ()

    def __init__(self, text: str) -> None:
        text = text.strip()
        super().__init__(text)
        self.scheme, authority, rest = self._split(text)
        userinfo, at, address = authority.rpartition("@")
        self.host, self.port = self._host_port(address)
        self.username, self.password = _credentials(userinfo if at else None)
        self.path, _, self.query = rest.partition("?")
        self._check()

    @property
    def address(self) -> str:
        """host:port, or the host alone."""
        if self.port:
            return join_host_port(self.host, self.port)
        return f"[{self.host}]" if ":" in self.host else self.host

    def without_credentials(self) -> str:
        """The URL for a library that gets user and password by other arguments."""
        query = f"?{self.query}" if self.query else ""
        return f"{self.scheme}://{self.address}{self.path}{query}"

    def __str__(self) -> str:
        query = f"?{HIDDEN}" if self.query else ""
        return f"{self.scheme}://{self._shown_user()}{self.address}{self.path}{query}"

    def _shown_user(self) -> str:
        if self.username is None:
            return ""
        # Without a password the name is one: a token.
        if self.password is None:
            return f"{HIDDEN}@"
        return f"{quote(self.username, safe='')}:{HIDDEN}@"

    def _split(self, text: str) -> tuple[str, str, str]:
        if unwritable := _UNWRITABLE.search(text):
            raise ValueError(
                f"has a blank or a control character at position {unwritable.start()}; "
                "such characters must be percent-encoded"
            )
        shape = _SHAPE.fullmatch(text)
        if shape is None:
            raise ValueError(f"is no URL; it must begin with {self._schemes()}")
        scheme, authority, rest = shape.group(1).lower(), shape.group(2), shape.group(3)
        if scheme not in self.SCHEMES:
            raise ValueError(f"must begin with {self._schemes()}, not with {scheme}://")
        if "#" in rest or "@" in rest:
            mark = "#" if "#" in rest else "@ behind the host"
            raise ValueError(f"can be read in two ways: it has a {mark}; {ENCODING_HINT}")
        return scheme, authority, rest

    def _host_port(self, address: str) -> tuple[str, int]:
        if not address:
            raise ValueError("has no host")
        if "," in address:
            raise ValueError("names several servers; name one of them")
        has_port = re.search(r":[^\]]*\Z", address) is not None
        try:
            host, port = split_host_port(address) if has_port else (bare_host(address), 0)
        except ValueError as error:
            raise ValueError(f"is wrong: {error}; {ENCODING_HINT}") from None
        if address.startswith("["):
            _require_ipv6(host)
        elif _NO_HOST.search(host):
            raise ValueError(f"has a host that no machine can have; {ENCODING_HINT}")
        return host, port

    def _check(self) -> None:
        """What one kind of server wants beyond the form of a URL."""

    def _schemes(self) -> str:
        *most, last = [f"{scheme}://" for scheme in self.SCHEMES]
        return f"{', '.join(most)} or {last}" if most else last


class HttpUrl(Url):
    """An HTTP server."""

    __slots__ = ()
    SCHEMES = ("http", "https")


class ProxyUrl(Url):
    """A proxy for HTTP."""

    __slots__ = ()
    SCHEMES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")


class NatsUrl(Url):
    """A NATS server; a user without password is a token."""

    __slots__ = ()
    SCHEMES = ("nats", "tls", "ws", "wss")


class RedisUrl(Url):
    """A Redis or Valkey server, or its socket; the path is the number of the database."""

    __slots__ = ()
    SCHEMES = ("redis", "rediss", "unix")

    def _host_port(self, address: str) -> tuple[str, int]:
        if self.scheme == "unix" and not address:
            return "", 0
        return super()._host_port(address)

    def _check(self) -> None:
        if self.scheme == "unix":
            if self.host or not self.path.strip("/"):
                raise ValueError("must name a socket by its whole path: unix:///path/of/socket")
            return
        database = self.path.removeprefix("/")
        if database and not (database.isascii() and database.isdigit()):
            raise ValueError(
                "must end in the number of a database, such as /0; "
                f"what stands behind the host is none. {ENCODING_HINT}"
            )


def basic_authorization(url: Url) -> dict[str, str]:
    """The header that user and password of a URL stand for; none if it has none (RFC 7617)."""
    if url.username is None:
        return {}
    pair = f"{url.username}:{url.password or ''}".encode()
    return {"authorization": f"Basic {b64encode(pair).decode()}"}


def _credentials(userinfo: str | None) -> tuple[str | None, str | None]:
    if userinfo is None:
        return None, None
    username, colon, password = userinfo.partition(":")
    return _decoded(username), _decoded(password) if colon else None


def _decoded(text: str) -> str:
    if _BAD_PERCENT.search(text):
        raise ValueError(f"has a % that two hexadecimal digits do not follow; {ENCODING_HINT}")
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise ValueError("has a user name or password that is not UTF-8 when decoded") from None


def _require_ipv6(host: str) -> None:
    try:
        IPv6Address(host)
    except AddressValueError:
        raise ValueError("has no IPv6 address between its brackets") from None
