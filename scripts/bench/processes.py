"""The processes of a stack, and their CPU time."""

from __future__ import annotations

import os
import time
from pathlib import Path

from millrace.testing.stack import Stack

PROC = Path("/proc")


def stack_pids(stack: Stack) -> dict[str, int]:
    """Name to process id, the supervisor's too."""
    record = stack.run_file()
    named = {str(entry["name"]): int(entry["pid"]) for entry in record["processes"]}
    return {"supervisor": int(record["pid"]), **named}


def cpu_s(pid: int) -> float | None:
    """CPU time of all its threads so far, seconds; None where the system does not say."""
    # The name in brackets may hold blanks; user and system time are 12 and 13 fields after it.
    fields = read_text(PROC / str(pid) / "stat").rpartition(")")[2].split()
    if len(fields) < 13:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_percent(pids: dict[str, int], seconds: float) -> dict[str, float]:
    """Percent of one core that each process took over the next `seconds`."""
    before = {name: cpu_s(pid) for name, pid in pids.items()}
    started_s = time.monotonic()
    time.sleep(seconds)
    elapsed_s = time.monotonic() - started_s
    percents = {}
    for name, pid in pids.items():
        first, last = before[name], cpu_s(pid)
        if first is not None and last is not None:
            percents[name] = round(100 * (last - first) / elapsed_s, 2)
    return percents


def read_text(path: Path) -> str:
    """What a file of /proc says; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
