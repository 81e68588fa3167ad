"""What this process may use of the machine: CPUs, memory, instruction sets."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from .cgroups import UNIFIED, cgroup_folders

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
DEV = Path("/dev")


def cpu_has_bf16(proc: Path = PROC) -> bool:
    """True where the CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX)."""
    cpuinfo = _read(proc / "cpuinfo")
    for line in cpuinfo.splitlines():
        if line.startswith("flags"):
            flags = set(line.partition(":")[2].split())
            return bool(flags & {"avx512_bf16", "amx_bf16"})
    return False


def has_gpu_driver(dev: Path = DEV) -> bool:
    """True where a library of NVIDIA's driver or a device of AMD's is there for torch to use."""
    if (dev / "kfd").exists():
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def usable_cpus(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """CPUs this process may use: the affinity mask, cut down to the quota of every cgroup above us.

    A part of a CPU counts as one: it is there to be used; at least 1.
    """
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    for quota, period in _cpu_quotas(proc, cgroup):
        # "max" and -1: none.
        if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            count = min(count, -(-int(quota) // int(period)))
    return max(1, count)


def _cpu_quotas(proc: Path, cgroup: Path) -> Iterator[tuple[str, str]]:
    """Microseconds of CPU time and the period that they are for, of each group above us."""
    for folder in cgroup_folders(UNIFIED, proc, cgroup):
        quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
        yield quota, period
    for folder in cgroup_folders("cpu", proc, cgroup):
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        yield quota.strip(), period.strip()


def available_memory_bytes(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Memory that can still be taken without swapping, inside every cgroup limit above us."""
    available = _meminfo_available(proc)
    for folder in cgroup_folders(UNIFIED, proc, cgroup):
        limit = _read(folder / "memory.max").strip()
        if limit.isdigit():
            used = int(_read(folder / "memory.current").strip() or 0)
            available = min(available, int(limit) - used + _reclaimable(folder))
    for folder in cgroup_folders("memory", proc, cgroup):
        limit = _read(folder / "memory.limit_in_bytes").strip()
        if limit.isdigit():
            used = int(_read(folder / "memory.usage_in_bytes").strip() or 0)
            available = min(available, int(limit) - used + _reclaimable(folder))
    return max(0, available)


def _meminfo_available(proc: Path) -> int:
    for line in _read(proc / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    # No /proc: half of the physical memory is a cautious guess.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _reclaimable(folder: Path) -> int:
    # Page cache counts as used memory in a cgroup but is given back on demand.
    lines = (line.partition(" ") for line in _read(folder / "memory.stat").splitlines())
    found = {name: value for name, _, value in lines}
    # Version 1 counts what lies in groups below by itself; usage has it.
    return int(found.get("total_inactive_file") or found.get("inactive_file") or 0)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
