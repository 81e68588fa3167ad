"""Memory of processes as the system counts it, and how much of a mapped file is their own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .processes import PROC, read_text

# The packed weights of a worker (libs/millrace/engine/kernels/cpu/packed_weights.py).
WEIGHTS = re.compile(r"/weights/[^/]+\.bin$")
HEADER = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ [0-9a-f]+ \S+ \d+\s*(.*)$")


def memory_mb(pid: int, proc: Path = PROC) -> dict[str, float]:
    """Megabytes; empty where the system does not say.

    `private`: pages that no other process shares, clean or written. `weights` and
    `weights_private`: what is resident of mapped weights, and what of that is this process's alone.
    """
    rollup = _kb_by_name(read_text(proc / str(pid) / "smaps_rollup"))
    status = _kb_by_name(read_text(proc / str(pid) / "status"))
    if not rollup or not status:
        return {}
    weights, weights_private = _weights_kb(read_text(proc / str(pid) / "smaps"))
    figures = {
        "peak_rss": status.get("VmHWM", 0),
        "rss": rollup.get("Rss", 0),
        "private": rollup.get("Private_Clean", 0) + rollup.get("Private_Dirty", 0),
        "weights": weights,
        "weights_private": weights_private,
    }
    return {name: round(kb * 1024 / 1e6, 1) for name, kb in figures.items()}


def all_memory_mb(pids: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Of every process, by name."""
    return {name: memory_mb(pid) for name, pid in pids.items()}


def _weights_kb(smaps: str) -> tuple[int, int]:
    resident = private = 0
    is_weights = False
    for line in smaps.splitlines():
        header = HEADER.match(line)
        if header:
            is_weights = bool(WEIGHTS.search(header.group(1)))
        elif is_weights and line.startswith("Rss:"):
            resident += int(line.split()[1])
        elif is_weights and line.startswith(("Private_Clean:", "Private_Dirty:")):
            private += int(line.split()[1])
    return resident, private


def _kb_by_name(text: str) -> dict[str, int]:
    lines = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    return {fields[0].rstrip(":"): int(fields[1]) for fields in lines}
