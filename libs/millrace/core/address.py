"""host:port, with the brackets that IPv6 needs."""

from __future__ import annotations

import socket
from typing import Any

MAX_PORT = 65_535


def bare_host(host: str) -> str:
    """The host as sockets take it: an IPv6 address without brackets."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def join_host_port(host: str, port: int) -> str:
    """host:port, with brackets around an IPv6 address."""
    bare = bare_host(host)
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def listening_address(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """Family and address to bind for `host`; a name that has both kinds means IPv4.

    Raises `OSError` for a name that nobody knows.
    """
    found = socket.getaddrinfo(
        bare_host(host) or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, _, _, _, address = min(found, key=lambda item: item[0] is not socket.AF_INET)
    return family, address


def split_host_port(address: str) -> tuple[str, int]:
    """The bare host and the port. Raises `ValueError`, which does not quote the address."""
    host, colon, port = address.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or not 0 < int(port) <= MAX_PORT:
        raise ValueError(f"the port must be a number from 1 to {MAX_PORT}")
    if ":" in host and bare_host(host) == host:
        raise ValueError("an IPv6 address needs brackets, such as [::1]:8080")
    if not bare_host(host):
        raise ValueError("there is no host")
    return bare_host(host), int(port)
