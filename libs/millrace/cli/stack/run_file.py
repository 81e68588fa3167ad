"""The run file of a started stack: who runs where. One stack per MILLRACE_HOME.

The supervisor holds an advisory lock on the run folder while it lives, so a stack that was killed
is never mistaken for a running one.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from millrace.config.home import Home
from millrace.config.replaced_file import replace_file
from millrace.core.errors import Conflict, Unavailable
from millrace.core.own_command import own_command

from .process_info import is_alive, start_mark

LOCK_WAIT_S = 1.0
NO_STACK = "no stack is running; start one with `{}`"
_LOCK_POLL_S = 0.05


@dataclass(slots=True)
class ProcessRecord:
    """One process as the run file shows it. `started` is Unix time, 0 if it does not run.

    `metrics_url` is empty for a process that serves no metrics.
    """

    name: str
    state: str = "waiting"
    pid: int = 0
    mark: str = ""
    address: str = ""
    started: float = 0.0
    num_restarts: int = 0
    metrics_url: str = ""


@dataclass(slots=True)
class StackRecord:
    """The whole stack as the run file shows it; `state` is starting, ready or stopping."""

    pid: int
    mark: str
    started: float
    state: str = "starting"
    model: str = ""
    endpoints: dict[str, str] = field(default_factory=dict)
    processes: list[ProcessRecord] = field(default_factory=list)


def new_stack_record(model: str, endpoints: dict[str, str]) -> StackRecord:
    """A record of a stack that this process supervises."""
    pid = os.getpid()
    return StackRecord(pid, start_mark(pid), time.time(), model=model, endpoints=endpoints)


def write_run_file(home: Home, record: StackRecord) -> None:
    """Replaces the run file in one step."""
    replace_file(home.run / "stack.json", json.dumps(asdict(record), indent=2))


def remove_run_file(home: Home) -> None:
    """Says that nothing runs."""
    (home.run / "stack.json").unlink(missing_ok=True)


def read_run_file(home: Home) -> StackRecord | None:
    """What the run file says, whether or not it is still true."""
    path = home.run / "stack.json"
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        processes = [ProcessRecord(**item) for item in document.pop("processes")]
        return StackRecord(**document, processes=processes)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError):
        # Written by another version: as good as none.
        return None


def running_stack(home: Home) -> StackRecord | None:
    """The stack that runs now, or None."""
    record = read_run_file(home)
    return record if record and is_alive(record.pid, record.mark) else None


def require_running_stack(home: Home) -> StackRecord:
    """As `running_stack`; raises `Unavailable` saying how to start one."""
    record = running_stack(home)
    if record is None:
        raise Unavailable(NO_STACK.format(own_command("up")))
    return record


@contextmanager
def stack_lock(home: Home) -> Iterator[None]:
    """Held by the supervisor while it lives. Raises `Conflict` naming the one that holds it."""
    home.run.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(home.run, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _lock(descriptor, home)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, home: Home) -> None:
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                break
            time.sleep(_LOCK_POLL_S)
    record = read_run_file(home)
    who = f"pid {record.pid}" if record else "pid unknown"
    raise Conflict(f"a stack is already running ({who}); stop it with `{own_command('down')}`")


def end_leftovers(home: Home) -> list[str]:
    """Kills what a supervisor that died left running; returns the names. Call under the lock."""
    record = read_run_file(home)
    if record is None:
        return []
    ended = []
    for item in record.processes:
        if item.pid and is_alive(item.pid, item.mark):
            os.killpg(item.pid, signal.SIGKILL)
            ended.append(item.name)
    remove_run_file(home)
    return ended
