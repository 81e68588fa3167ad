"""The machine of the minute: how fast it reads memory, and how fast it multiplies."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

from millrace.engine.kernels.cpu.library import KINDS, Kernels, padded_columns
from millrace.engine.kernels.cpu.packed_weights import pack_matrix
from millrace.engine.machine import usable_cpus

from .limits import Rates
from .timing import median_s

READ_BYTES = 270_000_000
NUM_READS = 7
NUM_MULTIPLIES = 5
# Threads of torch go on spinning for a while after their work, on cores that others need.
NAP_S = 0.02
# Rows, columns and k of the product that shows the multiply rate: it fits into the caches.
PRODUCT = (512, 3072, 576)
PRODUCT_FLOPS = 2 * PRODUCT[0] * PRODUCT[1] * PRODUCT[2]


class ReadProbe:
    """Sums 270 MB of float32 (what a bfloat16 decode step of the default model reads)."""

    def __init__(self) -> None:
        self._values = torch.ones(READ_BYTES // 4, dtype=torch.float32)

    def gb_per_s(self) -> float:
        """Median rate on all cores."""
        with _all_cores():
            return READ_BYTES / median_s(self._values.sum, NUM_READS) / 1e9


class MultiplyProbe:
    """Multiplies matrices that stay in the caches, by the kernels or by torch."""

    def __init__(self, kernels: Kernels | None) -> None:
        rng = np.random.default_rng(0)
        rows, columns, k = PRODUCT
        x = rng.standard_normal((rows, k)).astype(np.float32)
        weight = rng.standard_normal((columns, k)).astype(np.float32)
        self._ways: dict[str, Callable[[], Any]] = {}
        for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
            left = torch.from_numpy(x).to(dtype)
            right = torch.from_numpy(weight).to(dtype).T
            self._ways[f"torch {name}"] = partial(torch.matmul, left, right)
        if kernels is not None:
            out = np.empty((rows, padded_columns(columns)), dtype=np.float32)
            for kind in KINDS:
                call = _multiply_call(kernels, kind, weight, x, out)
                self._ways[f"{kernels.path} {kind}"] = call

    def all_tflops(self) -> dict[str, float]:
        """The rate of every way, and so which is the best."""
        return {name: self._tflops(way) for name, way in self._ways.items()}

    def keep(self, name: str) -> None:
        """Only this way from here on."""
        self._ways = {name: self._ways[name]}

    def tflops(self) -> float:
        """The rate of the best of the ways that are kept."""
        return max(self.all_tflops().values())

    def _tflops(self, way: Callable[[], Any]) -> float:
        with _all_cores():
            return PRODUCT_FLOPS / median_s(way, NUM_MULTIPLIES) / 1e12


class MachineProbe:
    """Both rates, measured again beside every figure: machines are shared and change by minutes."""

    def __init__(self, kernels: Kernels | None) -> None:
        self._read = ReadProbe()
        self._multiply = MultiplyProbe(kernels)
        self.ways = self._multiply.all_tflops()
        self.best_way = max(self.ways, key=lambda name: self.ways[name])
        self._multiply.keep(self.best_way)

    def rates(self) -> Rates:
        """Of this moment."""
        rates = Rates(self._read.gb_per_s(), self._multiply.tflops())
        time.sleep(NAP_S)
        return rates


def one_core_tflops(one: Kernels, kind: str) -> float:
    """The rate of kernels with a team of one thread."""
    probe = MultiplyProbe(one)
    probe.keep(f"{one.path} {kind}")
    return probe.tflops()


@contextmanager
def _all_cores() -> Iterator[None]:
    """torch works on all of them meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(usable_cpus())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _multiply_call(
    kernels: Kernels, kind: str, weight: Any, x: Any, out: Any
) -> Callable[[], None]:
    packed = pack_matrix(kernels, KINDS[kind], weight)
    struct = packed.struct

    def call(packed: Any = packed) -> None:
        code = kernels.c.mr_multiply(
            kernels.team,
            ctypes.byref(struct),
            x.ctypes.data,
            x.size,
            len(x),
            out.ctypes.data,
            out.size,
        )
        kernels.check(code)

    return call
