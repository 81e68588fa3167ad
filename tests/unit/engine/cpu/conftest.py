"""The kernels on every instruction path that can be run here, and fresh random numbers."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest

from tests.unit.engine.cpu.kernel_runner import (
    KernelRunner,
    make_runner,
    runnable_paths,
    why_not_runnable,
)

# A call under the emulator takes about 0.1 s.
EMULATED = [name for name in runnable_paths() if name.startswith("neon")]
PARAMS = [
    pytest.param(name, marks=pytest.mark.slow if name in EMULATED else ())
    for name in runnable_paths()
]


@pytest.fixture(scope="session", params=PARAMS)
def runner(request, kernel_folder) -> KernelRunner:
    reason = why_not_runnable(request.param)
    if reason:
        pytest.skip(reason)
    return make_runner(request.param, kernel_folder)


@pytest.fixture
def rng() -> np.random.Generator:
    """Fresh numbers in each run; a failure prints the seed to set."""
    seed = int(os.environ.get("MILLRACE_TEST_SEED") or random.SystemRandom().getrandbits(32))
    print(f"MILLRACE_TEST_SEED={seed}")
    return np.random.default_rng(seed)
