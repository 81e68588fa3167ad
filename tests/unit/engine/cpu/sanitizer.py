"""The kernels with the address and undefined-behaviour sanitizers, in a process of their own.

The sanitizers' library has to be there before Python is, so that all memory has guards around it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from millrace.engine.kernels.cpu.build import build_library, find_compiler
from millrace.engine.kernels.cpu.instruction_paths import choose_path

CHECKS = (
    "address",
    "alignment",
    "bool",
    "bounds",
    "float-cast-overflow",
    "integer-divide-by-zero",
) + ("return", "shift", "signed-integer-overflow", "unreachable")
# Less optimised, for stacks that can be read and a build that takes a minute, not ten.
FLAGS = (
    "-O1",
    "-g1",
    "-fno-omit-frame-pointer",
    f"-fsanitize={','.join(CHECKS)}",
    "-fno-sanitize-recover=all",
)
BUILD_TIMEOUT_S = 1800.0
# Where it is set, kernels for tests are built with `FLAGS`.
SWITCH = "MILLRACE_TEST_SANITIZED"
RUNTIMES = ("libasan.so", "libstdc++.so.6")
ROOT = Path(__file__).parents[4]


def build_flags() -> Sequence[str]:
    """What the compiler of kernels for tests gets beside the usual."""
    return FLAGS if os.environ.get(SWITCH) else ()


def why_not() -> str:
    """Why nothing can be sanitized here; empty where it can."""
    compiler = find_compiler()
    if compiler is None or choose_path("auto") is None:
        return "no kernels for this CPU or no C++ compiler"
    lacking = [name for name in RUNTIMES if not _runtime(compiler, name).is_absolute()]
    return f"{compiler} comes without {' and '.join(lacking)}" if lacking else ""


def run_sanitized(folder: Path, *args: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Python with `args` under the sanitizers, which end it with a report at the first fault.

    Kernels are built under `folder` before: a compiler under a sanitizer takes for ever.
    """
    compiler, path = find_compiler(), choose_path("auto")
    assert compiler is not None and path is not None
    build_library(path, folder, more_flags=FLAGS, timeout_s=BUILD_TIMEOUT_S)
    environ = {
        **os.environ,
        SWITCH: "1",
        "LD_PRELOAD": " ".join(str(_runtime(compiler, name)) for name in RUNTIMES),
        # Leaks of Python and its libraries are not ours.
        "ASAN_OPTIONS": "detect_leaks=0:exitcode=66",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # Or structures of ctypes would share blocks, without guards between them.
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), *sys.path))),
    }
    return subprocess.run(
        [sys.executable, *args],
        env=environ,
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout_s,
        check=False,
    )


def _runtime(compiler: str, name: str) -> Path:
    done = subprocess.run(
        [compiler, f"-print-file-name={name}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return Path(done.stdout.strip() or name)
