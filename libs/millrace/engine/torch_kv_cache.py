"""The paged K/V tensors of one device.

Layout per layer, for K and V alike: [num_blocks, num_kv_heads, block_size, head_dim]. One head of a
block is one contiguous run, so that gathering a row's blocks by index gives [heads, tokens, dim]
without a transposition. Slot s is offset s % block_size of block s // block_size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .kv_cache import LayerShape


class KVCache:
    """Blocks of `block_size` tokens; who owns which block is the scheduler's business.

    Every block must be cleared (`clear_blocks`) before its first token is written: readers mask the
    unwritten tail of a last block with zero weights, and zero times NaN would still be NaN.
    """

    def __init__(
        self,
        layers: Sequence[LayerShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.layers = tuple(layers)
        self.num_blocks = num_blocks
        self.block_size = block_size
        # One tensor per distinct (heads, dim), so that copying or clearing blocks is one call for
        # all layers of a uniform model. Uninitialised: pages are taken as blocks come into use.
        counts: dict[tuple[int, int], int] = {}
        places: list[tuple[tuple[int, int], int]] = []
        for layer in self.layers:
            for dim in (layer.key_dim, layer.value_dim):
                key = (layer.num_kv_heads, dim)
                places.append((key, counts.get(key, 0)))
                counts[key] = counts.get(key, 0) + 1
        self._pools = {
            key: torch.empty(
                (count, num_blocks, key[0], block_size, key[1]), dtype=dtype, device=device
            )
            for key, count in counts.items()
        }
        tensors = [self._pools[key][index] for key, index in places]
        self.keys = tensors[0::2]
        self.values = tensors[1::2]

    @property
    def num_bytes(self) -> int:
        """Bytes reserved for all blocks."""
        return sum(pool.nbytes for pool in self._pools.values())

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Sets every slot of `blocks` to zero."""
        for pool in self._pools.values():
            pool.index_fill_(1, torch.tensor(blocks, device=pool.device), 0.0)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks, (from, to) each; reads all sources before it writes a target."""
        for pool in self._pools.values():
            sources = torch.tensor([pair[0] for pair in pairs], device=pool.device)
            targets = torch.tensor([pair[1] for pair in pairs], device=pool.device)
            pool.index_copy_(1, targets, pool.index_select(1, sources))


def block_bytes(layers: Sequence[LayerShape], block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers."""
    per_token = sum(layer.num_kv_heads * (layer.key_dim + layer.value_dim) for layer in layers)
    return per_token * block_size * dtype.itemsize
