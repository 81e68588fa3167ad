"""A whole stack for tests: `millrace up` in a home of its own, on free ports, ended by its pid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.config.home import millrace_home

from .servers import free_port

READY_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 60.0
POLL_S = 0.1


@dataclass
class Stack:
    """A running stack. `home` holds its run file and logs."""

    home: Path
    http_url: str
    grpc_address: str
    process: subprocess.Popen[bytes]

    def run_file(self) -> dict[str, Any]:
        """Who runs where, as `millrace up` wrote it."""
        path = self.home / "run" / "stack.json"
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record

    def address_of(self, name: str) -> str:
        """host:port of a process, such as "scheduler" or "worker-2"."""
        return str(self._process(name)["address"])

    def pid_of(self, name: str) -> int:
        """Its process id."""
        return int(self._process(name)["pid"])

    def pids(self) -> list[int]:
        """Every process of the stack, the supervisor included."""
        record = self.run_file()
        return [int(record["pid"]), *(int(entry["pid"]) for entry in record["processes"])]

    def log_text(self) -> str:
        """What the stack printed."""
        return (self.home / "up.log").read_text(encoding="utf-8", errors="replace")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ends the stack in an orderly way; its exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_TIMEOUT_S)

    def _process(self, name: str) -> dict[str, Any]:
        processes: list[dict[str, Any]] = self.run_file()["processes"]
        return next(entry for entry in processes if entry["name"] == name)


@contextmanager
def start_stack(
    home: Path,
    models: Path,
    *flags: str,
    settings: Mapping[str, str] | None = None,
    timeout_s: float = READY_TIMEOUT_S,
    builds_kernels: bool = False,
) -> Iterator[Stack]:
    """`millrace up` with `settings` as variables; raises RuntimeError, with its log, on failure.

    Takes the kernels that set-up has built, unless the stack is to build its own.
    """
    _prepare_home(home, models)
    if not builds_kernels:
        _link(home / "cache" / "kernels", millrace_home().cache / "kernels")
    http_port, grpc_port = free_port(), free_port()
    command = [sys.executable, "-m", "millrace.cli", "up", "--first-answer", "false"]
    command += ["--http-port", str(http_port), "--grpc-port", str(grpc_port), *flags]
    with (home / "up.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**_clean_environment(), "MILLRACE_HOME": str(home), **(settings or {})},
        )
    stack = Stack(home, f"http://127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}", process)
    try:
        _wait_until_ready(stack, timeout_s)
        yield stack
    finally:
        if process.poll() is None:
            stack.stop()


def _prepare_home(home: Path, models: Path) -> None:
    home.mkdir(parents=True, exist_ok=True)
    _link(home / "models", models)


def _link(link: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(folder.resolve(), target_is_directory=True)


def _clean_environment() -> dict[str, str]:
    """Without the settings of whoever runs the tests."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MILLRACE_", "OTEL_"))
    }


def _wait_until_ready(stack: Stack, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if stack.process.poll() is not None:
            raise RuntimeError(f"millrace up ended:\n{stack.log_text()[-4000:]}")
        run_file = stack.home / "run" / "stack.json"
        if run_file.exists() and stack.run_file()["state"] == "ready":
            return
        time.sleep(POLL_S)
    raise RuntimeError(f"millrace up was not ready in {timeout_s} s:\n{stack.log_text()[-4000:]}")
