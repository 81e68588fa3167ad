"""The kernel table, linear layers: one matrix times a few rows, weights coming from memory."""

from __future__ import annotations

import ctypes
import itertools
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.engine.kernels.cpu.library import KINDS, Kernels, MatrixStruct, padded_columns
from millrace.engine.kernels.cpu.packed_weights import PackedMatrix, pack_matrix

from .limits import Cost, speed_figures
from .machine import READ_BYTES, MachineProbe
from .model_shapes import ModelShapes
from .progress import show_progress
from .scale import Scale
from .timing import mean_s

TYPES = ("bfloat16", "int8")
ALIGNMENT = 64


def measure_linears(
    kernels: Kernels, shapes: ModelShapes, probe: MachineProbe, scale: Scale
) -> list[dict[str, Any]]:
    """One row per layer, type and number of rows."""
    figures = []
    for name, (columns, k) in shapes.linears.items():
        show_progress(f"kernels: linear layer {name}, {columns} x {k}")
        for kind in TYPES:
            copies = Copies(kernels, kind, columns, k)
            for num_rows in scale.kernel_rows:
                rates = probe.rates()
                took_s = copies.multiply_s(num_rows, scale)
                cost = linear_cost(copies.num_bytes, num_rows, columns, k)
                figures.append(
                    {
                        "layer": name,
                        "columns": columns,
                        "k": k,
                        "weights": kind,
                        "rows": num_rows,
                        "us": round(took_s * 1e6, 1),
                        **speed_figures(cost, took_s, rates),
                    }
                )
    return figures


def linear_cost(num_bytes: int, num_rows: int, columns: int, k: int) -> Cost:
    """Weights of `num_bytes`, and inputs and outputs in float32."""
    return Cost(num_bytes + 4.0 * num_rows * (k + columns), 2.0 * num_rows * columns * k)


class Copies:
    """A matrix as often as it takes to be found in memory and not in a cache, taken in turn."""

    def __init__(self, kernels: Kernels, kind: str, columns: int, k: int) -> None:
        self._kernels = kernels
        self._columns, self._k = columns, k
        self._rng = np.random.default_rng(0)
        weight = self._rng.standard_normal((columns, k)).astype(np.float32)
        matrix = pack_matrix(kernels, KINDS[kind], weight)
        self.num_bytes = matrix.num_bytes
        self._room, starts = _copy(matrix)
        structs = [
            MatrixStruct(
                panels=start, bytes=matrix.num_bytes, kind=matrix.kind, columns=columns, k=k
            )
            for start in starts
        ]
        self._references = [ctypes.byref(struct) for struct in structs]

    def multiply_s(self, num_rows: int, scale: Scale) -> float:
        """Median over rounds of the time of one product."""
        x = self._rng.standard_normal((num_rows, self._k)).astype(np.float32)
        out = np.empty((num_rows, padded_columns(self._columns)), dtype=np.float32)
        ways = (x.ctypes.data, x.size, num_rows, out.ctypes.data, out.size)
        turn = itertools.cycle(self._references)
        kernels, team = self._kernels, self._kernels.team

        def multiply() -> None:
            kernels.check(kernels.c.mr_multiply(team, next(turn), *ways))

        mean_s(multiply, scale.kernel_round_s / 4)
        return median(mean_s(multiply, scale.kernel_round_s) for _ in range(scale.rounds))


def _copy(matrix: PackedMatrix) -> tuple[npt.NDArray[np.uint8], list[int]]:
    stride = -(-matrix.num_bytes // ALIGNMENT) * ALIGNMENT
    count = -(-READ_BYTES // stride)
    room = np.empty(count * stride + ALIGNMENT, dtype=np.uint8)
    first = -room.ctypes.data % ALIGNMENT
    whole = room[first : first + count * stride].reshape(count, stride)
    whole[:, : matrix.num_bytes] = matrix.panels
    return room, [int(whole.ctypes.data) + index * stride for index in range(count)]
