"""The paged K/V cache in the tiles of the CPU kernels (src/kv_tile.h)."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

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
        # Layers whose blocks are of one size share an array: clearing and copying are one call.
        sizes = [layer_block_bytes(kernels, layer, block_size, kind) for layer in layers]
        self._pools = {
            size: _reserve(sizes.count(size), num_blocks, size) for size in sorted(set(sizes))
        }
        used = dict.fromkeys(self._pools, 0)
        self.structs = (KvStruct * len(sizes))()
        for index, (layer, size) in enumerate(zip(self.layers, sizes, strict=True)):
            self.structs[index] = KvStruct(
                data=self._pools[size][used[size]].ctypes.data,
                bytes=self._pools[size][used[size]].nbytes,
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
        index = list(blocks)
        for pool in self._pools.values():
            pool[:, index] = 0

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks, (from, to) each; reads all sources before it writes a target."""
        sources, targets = ([pair[side] for pair in pairs] for side in (0, 1))
        for pool in self._pools.values():
            pool[:, targets] = pool[:, sources]


def _reserve(num_layers: int, num_blocks: int, block_bytes: int) -> npt.NDArray[np.uint64]:
    """[layers, blocks, words]. Pages are taken as blocks come into use."""
    num_bytes = num_layers * num_blocks * block_bytes
    # numpy's own memory comes in huge pages, of which one block would take one per layer.
    room = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    words: npt.NDArray[np.uint64] = np.frombuffer(room, dtype=np.uint64)
    return words.reshape(num_layers, num_blocks, -1)


def layer_block_bytes(kernels: Kernels, layer: LayerShape, block_size: int, kind: int) -> int:
    """Bytes of one block of one layer."""
    tile = kernels.tile_bytes(kind, layer.key_dim, layer.value_dim)
    return layer.num_kv_heads * tile * (block_size // TILE_TOKENS)


def check_block_size(block_size: int) -> None:
    """Raises `ConfigError` unless blocks are whole tiles."""
    if block_size % TILE_TOKENS:
        raise ConfigError(
            f"block_size is {block_size}; the cpu backend needs a multiple of {TILE_TOKENS}",
            field="block_size",
        )
