"""Who owns which block of one worker's KV cache, and which cached prefix lies where.

A block is free (neither owned nor cached), owned (reference count over 0, cached or not) or
evictable (cached, owned by nobody). Cached blocks are full and never written again, so any number
of rows may share them. Rows that were released keep their references until the worker has
confirmed the release; that is the whole quarantine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class BlockManager:
    """Blocks as integers 0..num_blocks-1; every operation is linear in the blocks it names."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._ref_counts = [0] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        # Insertion order is the order of eviction.
        self._evictable: dict[int, None] = {}
        self._hash_to_block: dict[bytes, int] = {}
        self._block_to_hash: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks neither owned nor cached."""
        return len(self._free)

    @property
    def num_available(self) -> int:
        """Blocks that can be allocated now: free or evictable."""
        return len(self._free) + len(self._evictable)

    @property
    def num_used(self) -> int:
        """Blocks owned by rows."""
        return self.num_blocks - self.num_available

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens`."""
        return -(-num_tokens // self.block_size)

    def find_prefix(self, hashes: Sequence[bytes], max_blocks: int) -> list[int]:
        """Blocks of the longest cached run of `hashes`; takes no reference."""
        found: list[int] = []
        for block_hash in hashes[:max_blocks]:
            block = self._hash_to_block.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def num_available_beside(self, shared: Iterable[int]) -> int:
        """Blocks that can still be allocated once `shared` are owned."""
        return self.num_available - sum(not self._ref_counts[block] for block in shared)

    def share(self, blocks: Iterable[int]) -> None:
        """Takes one more reference to cached blocks."""
        for block in blocks:
            if not self._ref_counts[block]:
                del self._evictable[block]
            self._ref_counts[block] += 1

    def allocate(self, num_blocks: int) -> list[int]:
        """New blocks with one reference each, free ones first, then the least recently used cached.

        Raises `IndexError` where fewer are available; callers look at `num_available` before.
        """
        if num_blocks > self.num_available:
            raise IndexError(f"{num_blocks} blocks wanted, {self.num_available} available")
        taken = [self._free.pop() if self._free else self._evict() for _ in range(num_blocks)]
        for block in taken:
            self._ref_counts[block] = 1
        return taken

    def free(self, blocks: Sequence[int]) -> None:
        """Gives up one reference to each block of a block table.

        In reverse, so that the end of a cached prefix is evicted before its beginning.
        """
        for block in reversed(blocks):
            self._ref_counts[block] -= 1
            if self._ref_counts[block]:
                continue
            if block in self._block_to_hash:
                self._evictable[block] = None
            else:
                self._free.append(block)

    def cache(self, block: int, block_hash: bytes) -> None:
        """Enters a full, computed block into the prefix index, if its content is not there."""
        if block_hash not in self._hash_to_block and block not in self._block_to_hash:
            self._hash_to_block[block_hash] = block
            self._block_to_hash[block] = block_hash

    def num_sole(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` have no other owner, and so come back when these are freed."""
        return sum(self._ref_counts[block] == 1 for block in blocks)

    def ref_count(self, block: int) -> int:
        """Owners of a block."""
        return self._ref_counts[block]

    def _evict(self) -> int:
        block = next(iter(self._evictable))
        del self._evictable[block]
        del self._hash_to_block[self._block_to_hash.pop(block)]
        return block
