"""A service of ours as a process on a port of its own, to be killed and started again."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from millrace.testing.servers import LocalServer, free_port

# A worker imports torch first, and other tests may have the cores.
START_TIMEOUT_S = 60.0


def make_service(
    name: str, folder: Path, *, port_setting: str = "port", **settings: object
) -> LocalServer:
    """`python -m millrace.<name>`, to be started; its `url` is host:port, its log in `folder`."""
    settings[port_setting] = port = free_port()
    command = [sys.executable, "-m", f"millrace.{name}"]
    for setting, value in settings.items():
        command += [f"--{setting.replace('_', '-')}", str(value)]
    log = folder / f"{name}-{port}.log"
    url = f"127.0.0.1:{port}"
    return LocalServer(url, port, command, log, _accepts, start_timeout_s=START_TIMEOUT_S)


@contextmanager
def start_service(name: str, folder: Path, **settings: object) -> Iterator[LocalServer]:
    """As `make_service`, started."""
    server = make_service(name, folder, **settings)  # type: ignore[arg-type]
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return True
    except OSError:
        return False
