"""`up --detach`: the same command again in a session of its own, waited for until it is ready."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping

from millrace.cli.console import Console
from millrace.config.home import Home
from millrace.core.errors import Unavailable
from millrace.core.own_command import own_command

from .log_file import last_lines
from .run_file import StackRecord, read_run_file

_POLL_S = 0.1
NUM_SHOWN_LINES = 20


def start_in_background(home: Home, environ: Mapping[str, str], console: Console) -> int:
    """Starts the supervisor and returns when the stack is ready. Raises `Unavailable`.

    `environ` holds all settings: the arguments of a process are there for everybody to read.
    """
    home.logs.mkdir(parents=True, exist_ok=True)
    log = home.logs / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "millrace.cli", "up", "--in-background"],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        record = _wait_ready(process, home)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    if record is None:
        for line in last_lines(log, NUM_SHOWN_LINES):
            console.line(f"    {line}")
        raise Unavailable(f"the stack did not start (status {process.returncode}); see {log}")
    for name in ("http", "grpc"):
        console.line(f"{name:<5} {record.endpoints[name]}")
    console.line(f"running in the background (pid {record.pid}); `{own_command('down')}` stops it")
    console.line(
        f"next: {own_command('chat')}, {own_command('status')}, {own_command('trace --last')}"
    )
    # It goes on without us: nobody waits for it here.
    process.returncode = 0
    return 0


def _wait_ready(process: subprocess.Popen[bytes], home: Home) -> StackRecord | None:
    """The record of the ready stack; None where the supervisor ended first."""
    while process.poll() is None:
        record = read_run_file(home)
        if record is not None and record.pid == process.pid and record.state == "ready":
            return record
        time.sleep(_POLL_S)
    return None
