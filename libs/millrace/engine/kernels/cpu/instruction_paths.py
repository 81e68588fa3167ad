"""The instruction sets the kernels are written for, and which of them this machine has."""

from __future__ import annotations

import platform
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from millrace.core.errors import ConfigError

CPUINFO = Path("/proc/cpuinfo")

_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni")
_AVX512_FLAGS = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"})
_AMX = ("-mamx-tile", "-mamx-bf16", "-mamx-int8")


@dataclass(frozen=True, slots=True)
class InstructionPath:
    """One build of the kernels. `cpu_flags` are the names that /proc/cpuinfo must list."""

    name: str
    machine: str
    cpu_flags: frozenset[str]
    compiler_flags: tuple[str, ...]
    for_tests: bool = False


# The best first. An operating system that does not save a register set hides its flag, so a listed
# flag is one that may be used.
PATHS = (
    InstructionPath(
        "amx",
        "x86_64",
        _AVX512_FLAGS | {"avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"},
        (*_AVX512, "-mavx512bf16", *_AMX),
    ),
    InstructionPath(
        "avx512_bf16", "x86_64", _AVX512_FLAGS | {"avx512_bf16"}, (*_AVX512, "-mavx512bf16")
    ),
    InstructionPath("avx512", "x86_64", _AVX512_FLAGS, _AVX512),
    InstructionPath("avx2", "x86_64", frozenset({"avx2", "fma", "f16c"}), _AVX2),
    InstructionPath(
        "neon_dotprod", "aarch64", frozenset({"asimd", "asimddp"}), ("-march=armv8.2-a+dotprod",)
    ),
    InstructionPath("neon", "aarch64", frozenset({"asimd"}), ("-march=armv8-a",)),
    # The tile code with its instructions in plain C++.
    InstructionPath(
        "amx_emulated",
        "x86_64",
        _AVX512_FLAGS | {"avx512_bf16"},
        (*_AVX512, "-mavx512bf16", "-DMILLRACE_EMULATE_AMX"),
        for_tests=True,
    ),
)
PATH_NAMES = tuple(path.name for path in PATHS if not path.for_tests)


def cpu_flags(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Features of the first CPU; those of macOS on Apple silicon, which has no such file."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        is_apple = platform.system() == "Darwin" and platform.machine() == "arm64"
        return frozenset({"asimd", "asimddp"}) if is_apple else frozenset()
    for line in lines:
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def missing_for_better(path: InstructionPath, flags: Set[str] | None = None) -> str:
    """ " (no amx: lacks amx_tile, …)" for every better path of the same machine, or ""."""
    flags = cpu_flags() if flags is None else flags
    reasons = []
    for better in PATHS[: PATHS.index(path)]:
        lacking = sorted(better.cpu_flags - flags)
        if better.machine == path.machine:
            reason = f"lacks {', '.join(lacking)}" if lacking else "not asked for"
            reasons.append(f"no {better.name}: {reason}")
    return f" ({'; '.join(reasons)})" if reasons else ""


def paths_of_machine(machine: str | None = None) -> list[InstructionPath]:
    """Every path for CPUs of this machine's kind, those that its own lacks too; the best first."""
    machine = _spelled_here(machine)
    return [path for path in PATHS if path.machine == machine and not path.for_tests]


def choose_path(
    asked: str, flags: Set[str] | None = None, machine: str | None = None
) -> InstructionPath | None:
    """The path called `asked`, or for "auto" the best this machine has; None where it has none.

    Raises `ConfigError` for a path the machine lacks, naming what is missing.
    """
    flags = cpu_flags() if flags is None else flags
    machine = _spelled_here(machine)
    for path in PATHS:
        fits = path.machine == machine and path.cpu_flags <= flags
        if asked == "auto" and fits and not path.for_tests:
            return path
        if asked == path.name:
            if fits:
                return path
            lacking = ", ".join(sorted(path.cpu_flags - flags)) or f"a {path.machine} machine"
            raise ConfigError(
                f"instruction_path is {asked!r}; this machine lacks {lacking}",
                field="instruction_path",
            )
    if asked == "auto":
        return None
    raise ConfigError(
        f"instruction_path is {asked!r}; known are auto, {', '.join(PATH_NAMES)}",
        field="instruction_path",
    )


def _spelled_here(machine: str | None) -> str:
    machine = platform.machine() if machine is None else machine
    return {"arm64": "aarch64", "AMD64": "x86_64"}.get(machine, machine)
