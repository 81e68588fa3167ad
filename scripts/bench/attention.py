"""The kernel table, paged attention of one layer: rows that decode, and chunks of a prefill."""

from __future__ import annotations

import ctypes
import itertools
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.engine.kernels.cpu.library import (
    KINDS,
    TILE_TOKENS,
    AttentionStruct,
    BatchStruct,
    HeadsStruct,
    Kernels,
    floats,
    numbers,
)
from millrace.engine.kernels.cpu.tile_cache import TileCache
from millrace.engine.kv_cache import LayerShape

from .case import Case
from .limits import Cost, speed_figures
from .machine import READ_BYTES, MachineProbe
from .model_shapes import ModelShapes, seen_tokens
from .progress import show_progress
from .scale import Scale
from .timing import mean_s

TYPES = ("bfloat16", "int8")
FILL_TOKENS = 512
CHUNK_BLOCKS = FILL_TOKENS // TILE_TOKENS

Floats = npt.NDArray[np.float32]


def cases_of(scale: Scale) -> list[Case]:
    """Decode at every number of rows and context, then chunks of a prefill."""
    grid = itertools.product(scale.attention_contexts, scale.attention_rows)
    decodes = [Case("decode", rows, 1, context) for context, rows in grid]
    chunks = [Case("prefill", 1, num_new, context) for num_new, context in scale.attention_chunks]
    return [*decodes, *chunks]


def measure_attention(
    kernels: Kernels, shapes: ModelShapes, probe: MachineProbe, scale: Scale
) -> list[dict[str, Any]]:
    """One row per type of K/V and case."""
    cases = cases_of(scale)
    figures = []
    for kind in TYPES:
        show_progress(f"kernels: paged attention, K/V in {kind}")
        layer = AttentionLayer(kernels, shapes, kind, max(case.num_blocks for case in cases))
        for case in cases:
            rates = probe.rates()
            took_s = layer.attend_s(case, scale)
            figures.append(
                {
                    "what": case.what,
                    "kv": kind,
                    "rows": case.num_rows,
                    "new": case.num_new,
                    "context": case.context,
                    "us": round(took_s * 1e6, 1),
                    **speed_figures(_cost(kernels, shapes, kind, case), took_s, rates),
                }
            )
    return figures


def _cost(kernels: Kernels, shapes: ModelShapes, kind: str, case: Case) -> Cost:
    seen = case.num_rows * seen_tokens(case.num_new, case.context)
    num_tokens = case.num_rows * case.context
    return Cost(shapes.kv_bytes(kernels, kind, num_tokens), shapes.attention_flops(seen))


class AttentionLayer:
    """One layer's cache, at least 270 MB and full of values; cases take other blocks each time."""

    def __init__(self, kernels: Kernels, shapes: ModelShapes, kind: str, least_blocks: int) -> None:
        self._kernels, self._shapes = kernels, shapes
        block_bytes = shapes.kv_bytes(kernels, kind, TILE_TOKENS)
        num_blocks = max(least_blocks, int(READ_BYTES / block_bytes))
        num_blocks = -(-num_blocks // CHUNK_BLOCKS) * CHUNK_BLOCKS
        layer = LayerShape(shapes.num_kv_heads, shapes.head_dim, shapes.head_dim)
        self._cache = TileCache(kernels, [layer], num_blocks, TILE_TOKENS, KINDS[kind])
        self._how = AttentionStruct(
            num_heads=shapes.num_heads, scale=shapes.head_dim**-0.5, window=0, softcap=0.0
        )
        self._rng = np.random.default_rng(0)
        self._fill()

    def attend_s(self, case: Case, scale: Scale) -> float:
        """Median over rounds of the time of one call."""
        blocks = self._rng.permutation(self._cache.num_blocks)
        count = len(blocks) // case.num_blocks
        tables = blocks[: count * case.num_blocks].reshape(count, case.num_rows, -1)
        new = self._new(case)
        calls = itertools.cycle([self._call(case, table, new) for table in tables])
        times = [
            mean_s(lambda: next(calls).run(), scale.kernel_round_s) for _ in range(scale.rounds + 1)
        ]
        return median(times[1:])

    def _fill(self) -> None:
        """512 random tokens get their K/V, which is copied over all blocks."""
        sources = np.arange(CHUNK_BLOCKS)
        self._cache.clear_blocks(sources.tolist())
        case = Case("fill", 1, FILL_TOKENS, FILL_TOKENS)
        self._call(case, sources[None], self._new(case)).run()
        for start in range(CHUNK_BLOCKS, self._cache.num_blocks, CHUNK_BLOCKS):
            self._cache.copy_blocks([(int(block), start + int(block)) for block in sources])

    def _new(self, case: Case) -> list[Floats]:
        """q, k and v of the new tokens."""
        shapes, num_new = self._shapes, case.num_rows * case.num_new
        return [
            self._rng.standard_normal((num_new, heads, shapes.head_dim), dtype=np.float32)
            for heads in (shapes.num_heads, shapes.num_kv_heads, shapes.num_kv_heads)
        ]

    def _call(self, case: Case, table: npt.NDArray[np.int64], new: list[Floats]) -> AttentionCall:
        return AttentionCall(self._kernels, self._cache, self._how, case, table, new)


class AttentionCall:
    """The arguments of one call, kept alive."""

    def __init__(
        self,
        kernels: Kernels,
        cache: TileCache,
        how: AttentionStruct,
        case: Case,
        table: npt.NDArray[np.int64],
        new: list[Floats],
    ) -> None:
        first = case.context - case.num_new
        self._kernels = kernels
        self._table = np.ascontiguousarray(table)
        self._positions = np.tile(np.arange(first, case.context), case.num_rows)
        self._starts = np.arange(case.num_rows + 1) * case.num_new
        self._contexts = np.full(case.num_rows, case.context)
        self._new, self._out = new, np.empty_like(new[0])
        self._batch = BatchStruct(
            num_rows=case.num_rows,
            num_tokens=case.num_rows * case.num_new,
            num_samples=0,
            table_width=table.shape[1],
            tiles_per_block=1,
            positions=numbers(self._positions),
            cu_seqlens_q=numbers(self._starts),
            context_lens=numbers(self._contexts),
            block_tables=numbers(self._table),
        )
        self._heads = HeadsStruct(
            *map(floats, new), out=self._out.ctypes.data, num_out=self._out.size
        )
        structs = (cache.structs[0], how, self._batch, self._heads)
        self._arguments = (kernels.team, *map(ctypes.byref, structs))

    def run(self) -> None:
        """One call."""
        self._kernels.check(self._kernels.c.mr_attend(*self._arguments))
