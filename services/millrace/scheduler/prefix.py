"""Content hashes of full blocks, by which a cached prefix is found.

h_i = BLAKE2b-128(h_{i-1} ‖ little-endian int32 ids of block i). h_0 = BLAKE2b-128 over the fields
model revision, dtype, layout version and tenant salt, each as a little-endian uint32 byte count
and its UTF-8 bytes. So equal hashes mean equal K/V, and tenants never share blocks.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b

HASH_BYTES = 16
LAYOUT_VERSION = 1


def prefix_seed(revision: str, dtype: str, layout_version: int = LAYOUT_VERSION) -> bytes:
    """What K/V depends on besides the tokens; workers with equal seeds have equal K/V."""
    return b"".join(_field(value) for value in (revision, dtype, str(layout_version)))


def root_hash(seed: bytes, tenant: str) -> bytes:
    """h_0 for a tenant."""
    return blake2b(seed + _field(tenant), digest_size=HASH_BYTES).digest()


def extend_block_hashes(
    hashes: list[bytes], root: bytes, token_ids: Sequence[int], block_size: int, num_blocks: int
) -> None:
    """Appends to `hashes` until it covers the first `num_blocks` full blocks of `token_ids`."""
    done = len(hashes)
    ids = token_ids[done * block_size : num_blocks * block_size]
    packed = struct.pack(f"<{len(ids)}i", *ids)
    stride = 4 * block_size
    parent = hashes[-1] if hashes else root
    for offset in range(0, len(packed) - stride + 1, stride):
        parent = blake2b(parent + packed[offset : offset + stride], digest_size=HASH_BYTES).digest()
        hashes.append(parent)


def _field(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<I", len(data)) + data
