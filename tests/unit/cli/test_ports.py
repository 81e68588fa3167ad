"""Free ports, and the owner of a busy one."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from millrace.cli.stack.ports import (
    FIRST_PORT,
    LAST_PORT,
    can_bind,
    pick_free_port,
    require_free_port,
)
from millrace.core.errors import ConfigError


def test_a_picked_port_can_be_bound_and_is_never_picked_twice() -> None:
    taken: set[int] = set()

    ports = [pick_free_port("127.0.0.1", taken) for _ in range(20)]

    assert len(set(ports)) == 20
    assert all(FIRST_PORT <= port <= LAST_PORT for port in ports)
    assert taken == set(ports)


def test_a_busy_port_names_its_owner_and_the_flag() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]

        assert not can_bind("127.0.0.1", port)
        with pytest.raises(ConfigError) as caught:
            require_free_port("127.0.0.1", port, "--http-port")

    assert f"port {port} on 127.0.0.1 is in use by" in caught.value.message
    assert f"(pid {os.getpid()})" in caught.value.message
    assert "--http-port" in caught.value.message
    assert Path(sys.executable).name in caught.value.message


def test_a_foreign_host_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1"):
        can_bind("192.0.2.1", 1)
