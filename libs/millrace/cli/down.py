"""`millrace down`: stops the running stack."""

from __future__ import annotations

import argparse
import os
import signal
import time
from typing import Any

from millrace.config.home import Home, millrace_home
from millrace.core.errors import Unavailable
from millrace.core.own_command import own_command

from .console import Console
from .stack.process_info import is_alive
from .stack.run_file import StackRecord, end_leftovers, running_stack, stack_lock

_POLL_S = 0.1


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser("down", help="stop the running stack")
    parser.add_argument(
        "--timeout-s", type=float, default=90.0, help="longest wait for its end; default: 90"
    )
    parser.add_argument("--force", action="store_true", help="kill what does not stop in time")


def run(args: argparse.Namespace) -> int:
    """Returns when nothing of the stack is left."""
    home, console = millrace_home(), Console()
    record = running_stack(home)
    if record is None:
        _clean_up(home, console)
        return 0
    os.kill(record.pid, signal.SIGTERM)
    if not _has_ended(record, args.timeout_s):
        if not args.force:
            raise Unavailable(
                f"the stack (pid {record.pid}) still stops after {args.timeout_s:g} s; "
                f"see `{own_command('status')}`, or kill it: {own_command('down --force')}"
            )
        os.kill(record.pid, signal.SIGKILL)
        _has_ended(record, args.timeout_s)
        with stack_lock(home):
            end_leftovers(home)
    console.line(f"stopped (pid {record.pid})")
    return 0


def _has_ended(record: StackRecord, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while is_alive(record.pid, record.mark):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _clean_up(home: Home, console: Console) -> None:
    if not home.run.is_dir():
        console.line("no stack is running")
        return
    with stack_lock(home):
        ended = end_leftovers(home)
    left = f"; ended what a killed one had left: {', '.join(ended)}" if ended else ""
    console.line(f"no stack is running{left}")
