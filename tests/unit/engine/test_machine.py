"""Reading CPUs and memory from /proc and cgroups, over made-up folders."""

from __future__ import annotations

import ctypes
import os

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


def test_memory_stays_inside_the_limit_of_a_version_1_cgroup(machine):
    proc, cgroup = machine
    (proc / "self" / "cgroup").write_text("4:memory:/user\n1:name=systemd:/\n")
    folder = cgroup / "memory" / "user"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("3000000\n")
    (folder / "memory.usage_in_bytes").write_text("1000000\n")
    (folder / "memory.stat").write_text("cache 7\ntotal_inactive_file 400000\n")

    assert available_memory_bytes(*machine) == 2400000


def test_cpus_stay_inside_the_quota(machine):
    _, cgroup = machine
    whole = usable_cpus(*machine)
    (cgroup / "user" / "work" / "cpu.max").write_text("50000 100000\n")

    assert whole == len(os.sched_getaffinity(0))
    assert usable_cpus(*machine) == 1


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
