"""Draws tokens by the kernels (src/draw.cpp), on their team of threads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from millrace.engine.sampler.drawer import DrawRequest

from .library import DrawStruct, FloatArray, Kernels, address

UNDECIDED = -1


class KernelDrawer:
    """See `Drawer`. Raises `MemoryError` where there is none for the buffers of top_k."""

    def __init__(self, kernels: Kernels) -> None:
        self._kernels = kernels

    def draw(self, logits: FloatArray, requests: Sequence[DrawRequest]) -> list[int | None]:
        """See `Drawer.draw`."""
        tokens: npt.NDArray[np.int64] = np.empty(len(requests), dtype=np.int64)
        code = self._kernels.c.mr_draw_tokens(
            self._kernels.team,
            address(logits),
            _reach(logits),
            logits.strides[0] // logits.itemsize,
            logits.shape[1],
            (DrawStruct * len(requests))(*map(draw_struct, requests)),
            len(requests),
            address(tokens),
        )
        self._kernels.check(code)
        return [None if token == UNDECIDED else token for token in tokens.tolist()]


def _reach(logits: FloatArray) -> int:
    """How many numbers lie from the first of `logits` to the last; rows may be apart."""
    rows, vocab = logits.shape
    return (rows - 1) * (logits.strides[0] // logits.itemsize) + vocab if rows else 0


def draw_struct(request: DrawRequest) -> DrawStruct:
    """A request as the kernels take it."""
    spec = request.spec
    return DrawStruct(
        request.row,
        spec.seed,
        request.position,
        request.choice,
        spec.top_k,
        spec.temperature,
        spec.top_p,
        spec.min_p,
    )
