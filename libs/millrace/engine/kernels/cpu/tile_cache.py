"""The paged K/V cache in the tiles of the CPU kernels (src/kv_tile.h)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from millrace.core.errors import ConfigError
from millrace.engine.kv_cache import LayerShape

from .library import TILE_TOKENS, Kernels, KvStruct


class TileCache:
    """`KVCache` for the `cpu` backend: per layer [num_blocks, bytes of a block].

    A block is `block_size / 32` tiles per K/V head. `kind` is the kernels' number for how K and V
    are stored. Blocks must be cleared before their first token is written, as those of `KVCache`.
    """

    def __init__(
        self,
        kernels: Kernels,
        layers: Sequence[LayerShape],
        num_blocks: int,
        block_size: int,
        kind: int,
    ) -> None:
        check_block_size(block_size)
        self.kernels = kernels
        self.layers = tuple(layers)
        self.num_blocks = num_blocks
        self.block_size = block_size
        # Layers whose blocks are of one size share a tensor: clearing and copying are one call.
        sizes = [layer_block_bytes(kernels, layer, block_size, kind) for layer in layers]
        self._pools = {
            size: torch.empty((sizes.count(size), num_blocks, size), dtype=torch.uint8)
            for size in sorted(set(sizes))
        }
        used = dict.fromkeys(self._pools, 0)
        self.structs = (KvStruct * len(sizes))()
        for index, (layer, size) in enumerate(zip(self.layers, sizes, strict=True)):
            self.structs[index] = KvStruct(
                data=self._pools[size][used[size]].data_ptr(),
                kind=kind,
                num_kv_heads=layer.num_kv_heads,
                key_dim=layer.key_dim,
                value_dim=layer.value_dim,
            )
            used[size] += 1

    @property
    def num_bytes(self) -> int:
        """Bytes reserved for all blocks."""
        return sum(pool.nbytes for pool in self._pools.values())

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Sets every slot of `blocks` to zero."""
        index = torch.tensor(blocks)
        for pool in self._pools.values():
            pool.index_fill_(1, index, 0)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks, (from, to) each; reads all sources before it writes a target."""
        sources = torch.tensor([pair[0] for pair in pairs])
        targets = torch.tensor([pair[1] for pair in pairs])
        for pool in self._pools.values():
            pool.index_copy_(1, targets, pool.index_select(1, sources))


def layer_block_bytes(kernels: Kernels, layer: LayerShape, block_size: int, kind: int) -> int:
    """Bytes of one block of one layer."""
    tile: int = kernels.c.mr_tile_bytes(kind, layer.key_dim, layer.value_dim)
    return layer.num_kv_heads * tile * (block_size // TILE_TOKENS)


def check_block_size(block_size: int) -> None:
    """Raises `ConfigError` unless blocks are whole tiles."""
    if block_size % TILE_TOKENS:
        raise ConfigError(
            f"block_size is {block_size}; the cpu backend needs a multiple of {TILE_TOKENS}",
            field="block_size",
        )
