"""The team of threads: under a thread sanitizer, and where the system has no thread to give."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from millrace.engine.kernels.cpu.build import SOURCES, build_library, find_compiler
from millrace.engine.kernels.cpu.instruction_paths import choose_path
from tests.unit.engine.conftest import NEEDS_KERNELS

pytestmark = NEEDS_KERNELS

TEAM_CHECK = Path(__file__).parents[3] / "cpp" / "team_check.cpp"
CREATE_TEAM = """
import resource, sys
from pathlib import Path
from millrace.core.errors import ConfigError
from millrace.engine.kernels.cpu.library import Kernels

library = Path(sys.argv[1])
Kernels(library, "any", 2)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))
try:
    Kernels(library, "any", 500)
except ConfigError as error:
    print(error)
Kernels(library, "any", 2)
"""


def test_phases_are_ordered_under_the_thread_sanitizer(tmp_path):
    path, compiler = choose_path("auto"), find_compiler()
    assert path is not None and compiler is not None
    program = tmp_path / "team_check"
    sanitizer = ["-fsanitize=thread", "-g", "-O1"]
    built = subprocess.run(
        [compiler, "-std=c++17", "-pthread", *sanitizer, *path.compiler_flags, f"-I{SOURCES}"]
        + ["-Wall", "-Wextra", "-Werror", "-Wno-maybe-uninitialized"]
        + ["-o", str(program), str(TEAM_CHECK), str(SOURCES / "team.cpp")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "tsan" in built.stderr:
        pytest.skip("the compiler comes without a thread sanitizer")
    assert built.returncode == 0, built.stderr

    done = subprocess.run(
        [str(program)],
        env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1 exitcode=66"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer does not run under this kernel")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_system_without_threads_to_give_is_a_clear_error(kernel_folder):
    path = choose_path("auto")
    assert path is not None
    library = build_library(path, kernel_folder)

    done = subprocess.run(
        [sys.executable, "-c", CREATE_TEAM, str(library)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "the system gives no 500 threads" in done.stdout
