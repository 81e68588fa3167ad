"""Paged attention by the C++ kernels, for models whose layers call it one by one."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

from millrace.engine.batch import Batch
from millrace.engine.kernels.cpu.library import (
    TILE_TOKENS,
    AttentionStruct,
    BatchStruct,
    FloatsStruct,
    HeadsStruct,
    numbers,
)
from millrace.engine.kernels.cpu.tile_cache import TileCache

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class CpuMetadata:
    """A step as the kernels take it; `batch` keeps the arrays alive that `struct` points to."""

    batch: Batch
    struct: BatchStruct


class CpuAttention:
    """The `cpu` backend; see `AttentionBackend`. A token's result does not depend on its batch."""

    def __init__(self, cache: TileCache) -> None:
        self.cache = cache
        self._tiles_per_block = cache.block_size // TILE_TOKENS

    def prepare(self, batch: Batch) -> CpuMetadata:
        """The batch's arrays, by address."""
        struct = BatchStruct(
            num_rows=len(batch.work),
            num_tokens=batch.num_tokens,
            num_samples=len(batch.sample_indices),
            table_width=batch.block_tables.shape[1],
            tiles_per_block=self._tiles_per_block,
            input_ids=numbers(batch.input_ids),
            positions=numbers(batch.positions),
            cu_seqlens_q=numbers(batch.cu_seqlens_q),
            context_lens=numbers(batch.context_lens),
            block_tables=numbers(batch.block_tables),
            sample_indices=numbers(batch.sample_indices),
        )
        return CpuMetadata(batch, struct)

    def forward(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        metadata: CpuMetadata,
        scale: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `AttentionBackend.forward`."""
        wide = [tensor.float().contiguous() for tensor in (q, k, v)]
        wide_sinks = None if sinks is None else sinks.float().contiguous()
        how = AttentionStruct(
            num_heads=q.shape[1],
            scale=scale,
            window=sliding_window or 0,
            softcap=softcap or 0.0,
            sinks=FloatsStruct() if wide_sinks is None else _floats(wide_sinks),
        )
        out = wide[0].new_empty((q.shape[0], q.shape[1], v.shape[2]))
        heads = HeadsStruct(*map(_floats, wide), out=out.data_ptr(), num_out=out.numel())
        kernels = self.cache.kernels
        code = kernels.c.mr_attend(
            kernels.team,
            ctypes.byref(self.cache.structs[layer]),
            ctypes.byref(how),
            ctypes.byref(metadata.struct),
            ctypes.byref(heads),
        )
        kernels.check(code)
        return out.to(q.dtype)


def _floats(tensor: torch.Tensor) -> FloatsStruct:
    return FloatsStruct(tensor.data_ptr(), tensor.numel())
