"""A service of ours as a process on a port of its own, to be killed and started again."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from millrace.testing.servers import LocalServer, free_port


@contextmanager
def start_service(name: str, folder: Path, **settings: object) -> Iterator[LocalServer]:
    """`python -m millrace.<name>`; its `url` is host:port, its log lies in `folder`."""
    port = int(str(settings.pop("port", 0))) or free_port()
    command = [sys.executable, "-m", f"millrace.{name}", "--port", str(port)]
    for setting, value in settings.items():
        command += [f"--{setting.replace('_', '-')}", str(value)]
    log = folder / f"{name}-{port}.log"
    server = LocalServer(f"127.0.0.1:{port}", port, command, log, _accepts)
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
