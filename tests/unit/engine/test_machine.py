"""Reading CPUs and memory from /proc and cgroups, over made-up folders."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from millrace.engine.machine import (
    available_memory_bytes,
    cpu_has_bf16,
    has_gpu_driver,
    usable_cpus,
)


@pytest.fixture
def machine(tmp_path):
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (cgroup / "user" / "work").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("0::/user/work\n")
    (proc / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:   4000 kB\n")
    return proc, cgroup


def test_memory_is_what_the_machine_has_available(machine):
    assert available_memory_bytes(*machine) == 4000 * 1024


def test_memory_stays_inside_the_limit_of_a_parent_cgroup(machine):
    _, cgroup = machine
    (cgroup / "user" / "memory.max").write_text("3000000\n")
    (cgroup / "user" / "memory.current").write_text("1000000\n")
    (cgroup / "user" / "memory.stat").write_text("anon 5\ninactive_file 400000\n")
    (cgroup / "user" / "work" / "memory.max").write_text("max\n")

    assert available_memory_bytes(*machine) == 2400000


# Where this process is, what is mounted where ({top} is the folder of cgroups), files, and the
# answer for 8 CPUs in the affinity mask.
V1 = "5:cpu:/\n2:memory:/\n0::/\n"
V1_PAIR = "4:cpu,cpuacct:/\n"
NESTED = "3:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n"
MOUNTED = "36 31 0:30 {root} {top}/{place} rw,relatime shared:9 - cgroup cgroup rw,{what}\n"
UNIFIED = "41 31 0:38 / {top}/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
QUOTAS: dict[str, tuple[str, str, dict[str, object], int]] = {
    "none": ("0::/\n", "", {"cpu.max": "max 100000"}, 8),
    "none, v1": (V1, "", {"cpu/cpu.cfs_quota_us": -1, "cpu/cpu.cfs_period_us": 100000}, 8),
    "v2": ("0::/\n", "", {"cpu.max": "300000 100000"}, 3),
    "v2, a part": ("0::/\n", "", {"cpu.max": "150000 100000"}, 2),
    "v2, less than one": ("0::/\n", "", {"cpu.max": "10000 100000"}, 1),
    "v2, nested": ("0::/a/b\n", "", {"a/b/cpu.max": "200000 100000"}, 2),
    "v2, parent": (
        "0::/a/b\n",
        "",
        {"a/cpu.max": "200000 100000", "a/b/cpu.max": "700000 100000"},
        2,
    ),
    "v2, other place": ("0::/a\n", UNIFIED, {"unified/a/cpu.max": "500000 100000"}, 5),
    "v2, no period": ("0::/\n", "", {"cpu.max": "500000"}, 8),
    "v1": (V1, "", {"cpu/cpu.cfs_quota_us": 200000, "cpu/cpu.cfs_period_us": 100000}, 2),
    "v1, a part": (V1, "", {"cpu/cpu.cfs_quota_us": 250000, "cpu/cpu.cfs_period_us": 100000}, 3),
    "v1, other period": (V1, "", {"cpu/cpu.cfs_quota_us": 20000, "cpu/cpu.cfs_period_us": 5000}, 4),
    "v1, no period": (V1, "", {"cpu/cpu.cfs_quota_us": 200000, "cpu/cpu.cfs_period_us": 0}, 8),
    "v1, two that go together": (
        V1_PAIR,
        "",
        {"cpu,cpuacct/cpu.cfs_quota_us": 400000, "cpu,cpuacct/cpu.cfs_period_us": 100000},
        4,
    ),
    "v1, the other way round": (
        "4:cpuacct,cpu:/\n",
        "",
        {"cpuacct,cpu/cpu.cfs_quota_us": 400000, "cpuacct,cpu/cpu.cfs_period_us": 100000},
        4,
    ),
    "v1, nested": (
        NESTED,
        "",
        {
            "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": 300000,
            "cpu,cpuacct/docker/abc/cpu.cfs_period_us": 100000,
        },
        3,
    ),
    "v1, parent": (
        NESTED,
        "",
        {
            "cpu,cpuacct/docker/cpu.cfs_quota_us": 100000,
            "cpu,cpuacct/docker/cpu.cfs_period_us": 100000,
            "cpu,cpuacct/docker/abc/cpu.cfs_quota_us": -1,
            "cpu,cpuacct/docker/abc/cpu.cfs_period_us": 100000,
        },
        1,
    ),
    "v1, of a container": (
        NESTED,
        MOUNTED.replace("{root}", "/docker/abc").replace("{place}", "here\\040too"),
        {"here too/cpu.cfs_quota_us": 600000, "here too/cpu.cfs_period_us": 100000},
        6,
    ),
    "v1, below a container's": (
        "3:cpu,cpuacct:/docker/abc/job\n",
        MOUNTED.replace("{root}", "/docker/abc").replace("{place}", "mine"),
        {"mine/job/cpu.cfs_quota_us": 500000, "mine/job/cpu.cfs_period_us": 100000},
        5,
    ),
    "v1, of another namespace": (
        "3:cpu,cpuacct:/../other\n",
        MOUNTED.replace("{root}", "/").replace("{place}", "cpu"),
        {
            "cpu/cpu.cfs_quota_us": 300000,
            "cpu/cpu.cfs_period_us": 100000,
            "other/cpu.cfs_quota_us": 100000,
            "other/cpu.cfs_period_us": 100000,
        },
        3,
    ),
    "v1, another controller's": (
        "3:cpuset:/\n2:cpuacct:/\n",
        MOUNTED.replace("{root}", "/").replace("{place}", "cpuset").replace("{what}", "cpuset"),
        {"cpuset/cpu.cfs_quota_us": 100000, "cpuset/cpu.cfs_period_us": 100000},
        8,
    ),
    "both, the stricter": (
        "1:cpu:/\n0::/a\n",
        UNIFIED + MOUNTED.replace("{root}", "/").replace("{place}", "cpu"),
        {
            "unified/a/cpu.max": "700000 100000",
            "cpu/cpu.cfs_quota_us": 300000,
            "cpu/cpu.cfs_period_us": 100000,
        },
        3,
    ),
    "lines nobody knows": ("\nx\n::\n", "\n- \na - b\n1 2 3 - cgroup x cpu\n", {}, 8),
}


@pytest.mark.parametrize("name", QUOTAS)
def test_cpus_stay_inside_the_quotas_of_every_group_above(machine, monkeypatch, name):
    proc, cgroup = machine
    groups, mounts, files, expected = QUOTAS[name]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    (proc / "self" / "cgroup").write_text(groups)
    if mounts:
        mounts = mounts.replace("{top}", str(cgroup)).replace("{what}", "cpu,cpuacct")
        (proc / "self" / "mountinfo").write_text(mounts)
    _write(cgroup, files)

    assert usable_cpus(proc, cgroup) == expected


def test_cpus_are_those_of_the_affinity_mask_where_the_quota_gives_more(machine, monkeypatch):
    proc, cgroup = machine
    _write(cgroup, {"cpu/cpu.cfs_quota_us": 400000, "cpu/cpu.cfs_period_us": 100000})
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    (proc / "self" / "cgroup").write_text(V1)

    assert usable_cpus(proc, cgroup) == 2


def test_cpus_of_a_machine_without_cgroups_are_those_of_the_mask(tmp_path):
    assert usable_cpus(tmp_path / "proc", tmp_path / "cgroup") == len(os.sched_getaffinity(0))


def _write(folder: Path, files: Mapping[str, object]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{content}\n")


STAT_V1 = "cache 7\ninactive_file 1\ntotal_inactive_file 400000"
USED: dict[str, object] = {
    "memory.limit_in_bytes": 3000000,
    "memory.usage_in_bytes": 1000000,
    "memory.stat": STAT_V1,
}
UNLIMITED: dict[str, object] = {
    "memory.limit_in_bytes": 9223372036854771712,
    "memory.usage_in_bytes": 5,
}
MEMORIES: dict[str, tuple[str, str, dict[str, dict[str, object]]]] = {
    "its own": ("4:memory:/user\n", "", {"memory/user": USED}),
    "a parent's": ("4:memory:/user/a\n", "", {"memory/user/a": UNLIMITED, "memory/user": USED}),
    "the top": ("4:memory:/\n", "", {"memory": USED}),
    "a container's": (
        "4:memory:/docker/abc\n",
        MOUNTED.replace("{root}", "/docker/abc").replace("{place}", "mine"),
        {"mine": USED},
    ),
}


@pytest.mark.parametrize("name", MEMORIES)
def test_memory_stays_inside_the_limits_of_version_1_groups(machine, name):
    proc, cgroup = machine
    groups, mounts, folders = MEMORIES[name]
    (proc / "self" / "cgroup").write_text(groups)
    if mounts:
        mounts = mounts.replace("{top}", str(cgroup)).replace("{what}", "memory")
        (proc / "self" / "mountinfo").write_text(mounts)
    for folder, files in folders.items():
        _write(cgroup / folder, files)

    assert available_memory_bytes(proc, cgroup) == 2400000


@pytest.mark.parametrize(
    ("flags", "expected"), [("fpu avx512_bf16", True), ("amx_bf16", True), ("avx512f", False)]
)
def test_bfloat16_comes_from_the_cpu_flags(machine, flags, expected):
    proc, _ = machine
    (proc / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n")

    assert cpu_has_bf16(proc) is expected


def test_gpu_driver_is_known_by_nvidias_library_or_amds_device(tmp_path, monkeypatch):
    def lacks(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", lacks)
    assert not has_gpu_driver(tmp_path)
    (tmp_path / "kfd").touch()
    assert has_gpu_driver(tmp_path)
    (tmp_path / "kfd").unlink()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: name)
    assert has_gpu_driver(tmp_path)
