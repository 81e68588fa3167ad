"""Which hosts only this machine can reach."""

from __future__ import annotations

import pytest

from millrace.core.loopback import is_loopback


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.3.2.1", "::1"])
def test_loopback_is_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "127.example.org", "collector", ""])
def test_everything_else_is_outside(host: str) -> None:
    assert not is_loopback(host)
