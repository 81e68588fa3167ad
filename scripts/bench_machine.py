"""The machine under a benchmark: read bandwidth, and memory and CPU time of processes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from statistics import median

import torch

from millrace.engine.machine import usable_cpus
from millrace.testing.stack import Stack

READ_BYTES = 270_000_000
NUM_READS = 7
PROC = Path("/proc")


def read_gb_per_s() -> float:
    """Median rate of summing 270 MB of float32 (what a bfloat16 decode step reads) on all cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(usable_cpus())
    try:
        values = torch.ones(READ_BYTES // 4, dtype=torch.float32)
        values.sum()
        rates = []
        for _ in range(NUM_READS):
            started_s = time.perf_counter()
            values.sum()
            rates.append(READ_BYTES / (time.perf_counter() - started_s) / 1e9)
    finally:
        torch.set_num_threads(before)
    return round(median(rates), 2)


def stack_pids(stack: Stack) -> dict[str, int]:
    """Name to process id, the supervisor's too."""
    record = stack.run_file()
    named = {str(entry["name"]): int(entry["pid"]) for entry in record["processes"]}
    return {"supervisor": int(record["pid"]), **named}


def peak_rss_mb(pid: int) -> float | None:
    """Largest resident memory so far, megabytes; None where the system does not say."""
    for line in _read(PROC / str(pid) / "status").splitlines():
        if line.startswith("VmHWM:"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    return None


def cpu_s(pid: int) -> float | None:
    """CPU time of all its threads so far, seconds; None where the system does not say."""
    # The name in brackets may hold blanks; user and system time are 12 and 13 fields after it.
    fields = _read(PROC / str(pid) / "stat").rpartition(")")[2].split()
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


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
