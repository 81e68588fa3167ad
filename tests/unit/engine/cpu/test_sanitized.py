"""Kernel tests and fuzzes with kernels that stop at the first byte read where none is."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from millrace.engine.config import EngineConfig
from millrace.engine.engine import create_engine
from millrace.engine.kernels.cpu.instruction_paths import choose_path
from tests.unit.engine.cpu import sanitizer
from tests.unit.engine.cpu.sanitizer import run_sanitized

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(sanitizer.why_not()), reason=sanitizer.why_not()),
]

KERNEL_TESTS = ("arguments", "attention", "decoder", "draw", "multiply", "not_finite")
FUNCTIONS = (
    ("mr_tile_bytes", "mr_panel_bytes", "mr_pack", "mr_multiply", "mr_attend", "mr_model_run")
    + ("mr_draw_tokens",)
)  # fmt: skip
TIMEOUT_S = 1800.0


def test_fault_is_found(kernel_folder):
    """Or all the others here would prove nothing."""
    done = run_sanitized(
        kernel_folder, "-c", READS_TOO_FAR, str(kernel_folder), timeout_s=TIMEOUT_S
    )

    assert done.returncode == 66, done.stderr[-2000:]
    assert "heap-buffer-overflow" in done.stderr


READS_TOO_FAR = """
import sys
from pathlib import Path
import numpy as np
from tests.unit.engine.cpu.argument_calls import multiply_call
from tests.unit.engine.cpu.kernel_runner import make_runner
from millrace.engine.kernels.cpu.instruction_paths import choose_path
runner = make_runner(choose_path("auto").name, Path(sys.argv[1]))
call = multiply_call(np.random.default_rng(0), runner, 0)
with call.spot("num_in").set_to(70 * 50), call.spot("rows").set_to(50):
    with call.spot("num_out").set_to(64 * 50):
        call.run(runner)
"""


def test_kernel_tests_pass(kernel_folder):
    path = choose_path("auto")
    assert path is not None
    files = [f"tests/unit/engine/cpu/test_{name}.py" for name in KERNEL_TESTS]

    done = run_sanitized(
        kernel_folder,
        *("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow"),
        *("-k", f"{path.name}- or {path.name}] or arguments", *files),
        timeout_s=TIMEOUT_S,
    )

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert " passed" in done.stdout


def test_no_argument_is_followed_out_of_memory(kernel_folder):
    counts = _fuzzed("argument_fuzz", kernel_folder, times=200)

    for function in FUNCTIONS:
        assert counts[f"{function} refused"] > 20, counts
        assert counts[f"{function} right"] > 0, counts
    assert counts.total() > 5000


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "int4"])
def test_no_damaged_file_of_packed_weights_is_followed_out_of_memory(
    kernel_folder, tiny, tmp_path, kind
):
    checkpoint = tiny("llama-biased").path
    cache = _packed(checkpoint, kind, tmp_path / "cache", kernel_folder)
    counts = _fuzzed("packed_fuzz", kernel_folder, str(checkpoint), str(cache), kind, times=150)

    assert counts["packed anew"] > 500, counts
    assert counts["taken"] > 50, counts


def _packed(checkpoint: Path, kind: str, cache: Path, kernel_folder: Path) -> Path:
    """A folder with the packed weights, made by an engine."""
    cache.mkdir()
    (cache / "kernels").symlink_to(kernel_folder)
    config = EngineConfig(checkpoint, "x", device="cpu", backend="cpu", cache_dir=cache)
    is_whole = kind in ("float32", "bfloat16")
    create_engine(replace(config, dtype=kind) if is_whole else replace(config, quantization=kind))
    return cache


def _fuzzed(fuzz: str, kernel_folder: Path, *more: str, times: int) -> Counter[str]:
    """What a fuzz counted, from another seed each time.

    Fails with the sanitizers' report if it did not come to its end.
    """
    seed = random.SystemRandom().getrandbits(32)
    arguments = (str(kernel_folder), *more, str(seed), str(times))
    done = run_sanitized(
        kernel_folder, "-m", f"tests.unit.engine.cpu.{fuzz}", *arguments, timeout_s=TIMEOUT_S
    )
    print(f"seed {seed}: {done.stdout}")
    assert done.returncode == 0, f"seed {seed}: {done.stdout[-1000:]} {done.stderr[-6000:]}"
    return Counter(json.loads(done.stdout.splitlines()[-1]))
