"""What this process may use of the machine: CPUs, memory, instruction sets."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

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
    """CPUs this process may use: the affinity mask, cut down to the cgroup's quota; at least 1."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    for folder in _cgroup_folders(proc, cgroup):
        quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
        if quota.isdigit() and period.isdigit():
            count = min(count, -(-int(quota) // int(period)))
    return max(1, count)


def available_memory_bytes(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Memory that can still be taken without swapping, inside every cgroup limit above us."""
    available = _meminfo_available(proc)
    for folder in _cgroup_folders(proc, cgroup):
        limit = _read(folder / "memory.max").strip()
        if limit.isdigit():
            used = int(_read(folder / "memory.current").strip() or 0)
            available = min(available, int(limit) - used + _reclaimable(folder))
    for folder in _memory_folders_v1(proc, cgroup):
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
    for line in _read(folder / "memory.stat").splitlines():
        if line.startswith(("inactive_file ", "total_inactive_file ")):
            return int(line.split()[1])
    return 0


def _cgroup_folders(proc: Path, cgroup: Path) -> list[Path]:
    """Our cgroup (version 2) and its parents; in a container the root is the container's own."""
    path = ""
    for line in _read(proc / "self" / "cgroup").splitlines():
        if line.startswith("0::"):
            path = line.removeprefix("0::").strip("/")
    folders = [cgroup]
    for part in path.split("/") if path else []:
        folders.append(folders[-1] / part)
    return folders


def _memory_folders_v1(proc: Path, cgroup: Path) -> list[Path]:
    """Our memory cgroup of version 1 and its parents, where the machine still has one."""
    folders = [cgroup / "memory"]
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            for part in Path(path.strip("/")).parts:
                folders.append(folders[-1] / part)
    return folders


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
