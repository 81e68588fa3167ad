"""What the engine asks of a paged K/V cache, and how many blocks it gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from millrace.core.errors import ConfigError

CPU_MEMORY_SHARE = 0.25
GPU_MEMORY_RESERVE = 0.10


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What an attention layer keeps per token; `value_dim` differs from `key_dim` in MLA models."""

    num_kv_heads: int
    key_dim: int
    value_dim: int


class PagedCache(Protocol):
    """What the engine needs of a K/V cache, whatever its layout."""

    num_blocks: int
    block_size: int

    @property
    def num_bytes(self) -> int:
        """Bytes reserved for all blocks."""
        ...

    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Sets every slot of `blocks` to zero."""
        ...

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks, (from, to) each; reads all sources before it writes a target."""
        ...


def choose_num_blocks(
    setting: int,
    *,
    bytes_per_block: int,
    block_size: int,
    max_num_seqs: int,
    max_model_len: int,
    memory_bytes: int,
) -> int:
    """The least of the setting (0: none), what all rows could ever use, and what memory allows.

    `memory_bytes` is what the cache may take. Raises `ConfigError` where not one block fits.
    """
    limits = [max_num_seqs * -(-max_model_len // block_size), memory_bytes // bytes_per_block]
    if setting:
        limits.append(setting)
    num_blocks = min(limits)
    if num_blocks < 1:
        raise ConfigError(
            f"no K/V block fits: a block takes {bytes_per_block} bytes, "
            f"the cache may take {memory_bytes}",
            field="num_blocks",
        )
    return num_blocks
