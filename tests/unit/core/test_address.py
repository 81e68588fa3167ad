"""host:port with IPv6."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from millrace.core.address import (
    bare_host,
    join_host_port,
    listening_address,
    split_host_port,
)


@pytest.mark.parametrize(
    ("host", "joined"),
    [
        ("127.0.0.1", "127.0.0.1:80"),
        ("localhost", "localhost:80"),
        ("::1", "[::1]:80"),
        ("[::1]", "[::1]:80"),
        ("::", "[::]:80"),
        ("::ffff:127.0.0.1", "[::ffff:127.0.0.1]:80"),
    ],
)
def test_joined_and_split_are_inverse(host: str, joined: str) -> None:
    assert join_host_port(host, 80) == joined
    assert split_host_port(joined) == (bare_host(host), 80)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("::1:80", "brackets"),
        ("localhost", "port"),
        ("localhost:", "port"),
        ("localhost:http", "port"),
        ("localhost:0", "port"),
        ("localhost:65536", "port"),
        ("localhost:²", "port"),
        (":80", "no host"),
        ("[]:80", "no host"),
    ],
)
def test_what_is_no_address_is_refused(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_host_port(address)


V4 = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80))
V6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 80, 0, 0))


@pytest.mark.parametrize(
    ("known", "family"),
    [([V6, V4], socket.AF_INET), ([V4], socket.AF_INET), ([V6], socket.AF_INET6)],
)
def test_a_name_means_ipv4_if_it_can_and_ipv6_if_it_must(
    monkeypatch: pytest.MonkeyPatch, known: list[Any], family: int
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: known)

    assert listening_address("localhost", 80)[0] == family
