"""Which hosts only this machine can reach."""

from __future__ import annotations

import pytest

from millrace.core.loopback import is_loopback


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.3.2.1"),
        *("::1", "[::1]", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1"),
    ],
)
def test_loopback_is_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        *("0.0.0.0", "::", "[::]", "10.0.0.1", "127.example.org", "collector", ""),
        *("::ffff:10.0.0.1", "fe80::1", "localhost.example.org"),
    ],
)
def test_everything_else_is_outside(host: str) -> None:
    assert not is_loopback(host)
