"""Kernels called on numpy arrays: packed matrices, and a paged cache with sequences in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.engine.kernels.cpu.library import (
    TILE_TOKENS,
    AttentionStruct,
    BatchStruct,
    HeadsStruct,
    KvStruct,
    MatrixStruct,
    address,
    floats,
    numbers,
    padded_columns,
)
from tests.unit.engine.cpu.kernel_runner import TEAM, KernelRunner

Array = npt.NDArray[Any]

GUARD_BYTES = 4096
POISON = 0xFF  # A NaN in float32 and in bfloat16.


@dataclass
class Packed:
    """A matrix packed by the kernels, and the memory that its structure points to."""

    struct: MatrixStruct
    memory: list[Array]


def pack(runner: KernelRunner, kind: int, weight: Array, bias: Array | None = None) -> Packed:
    """weight [columns, k] in panels; every byte of the result was poisoned before."""
    columns, k = weight.shape
    panels = np.full(runner.call("mr_panel_bytes", kind, columns, k), POISON, np.uint8)
    weight = np.ascontiguousarray(weight, np.float32)
    args = (kind, weight, weight.size, columns, k, panels, panels.size)
    assert runner.call("mr_pack", *args) == 0
    if bias is not None:
        padding = np.zeros(padded_columns(columns) - columns, np.float32)
        bias = np.concatenate([bias, padding])
    struct = MatrixStruct(
        panels=address(panels),
        bytes=panels.size,
        bias=floats(bias),
        kind=kind,
        columns=columns,
        k=k,
    )
    return Packed(struct, [panels] if bias is None else [panels, bias])


def multiply(runner: KernelRunner, packed: Packed, x: Array, team_size: int = 2) -> Array:
    """x [rows, k] times the matrix, without the padding, which must be zeros in rows of numbers."""
    columns = packed.struct.columns
    x = np.ascontiguousarray(x, np.float32)
    out = np.full((len(x) + 1, padded_columns(columns)), np.nan, np.float32)
    args = (TEAM, packed.struct, x, x.size, len(x), out, out[:-1].size)
    assert runner.call("mr_multiply", *args, memory=packed.memory, team_size=team_size) == 0
    assert np.isnan(out[-1]).all(), "written behind the last row"
    assert not out[:-1][np.isfinite(x).all(axis=1), columns:].any(), "padding is not zero"
    return out[:-1, :columns]


@dataclass
class Shape:
    """Heads of an attention layer and how it attends; window and softcap 0, sinks None: none."""

    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int = 0
    softcap: float = 0.0
    sinks: Array | None = None

    @property
    def scale(self) -> float:
        return float(self.key_dim**-0.5)

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Of a token's q, k and v."""
        kv_heads = self.num_kv_heads
        return (
            (self.num_heads, self.key_dim),
            (kv_heads, self.key_dim),
            (kv_heads, self.value_dim),
        )

    @property
    def struct(self) -> AttentionStruct:
        return AttentionStruct(
            num_heads=self.num_heads,
            scale=self.scale,
            window=self.window,
            softcap=self.softcap,
            sinks=floats(self.sinks),
        )


@dataclass
class Tokens:
    """Tokens of one sequence, and the blocks that it owns."""

    q: Array
    k: Array
    v: Array
    table: Array
    done: int = 0
    outputs: list[Array] = field(default_factory=list)

    @property
    def out(self) -> Array:
        return np.concatenate(self.outputs)


class Cache:
    """A poisoned paged cache of one layer between guards; owned blocks are cleared, as promised."""

    def __init__(
        self,
        runner: KernelRunner,
        kind: int,
        shape: Shape,
        rng: np.random.Generator,
        num_blocks: int = 64,
        tiles_per_block: int = 1,
    ) -> None:
        self.runner, self.kind, self.shape = runner, kind, shape
        self.tiles_per_block = tiles_per_block
        self.block_tokens = tiles_per_block * TILE_TOKENS
        tile = runner.call("mr_tile_bytes", kind, shape.key_dim, shape.value_dim)
        self._block_bytes = tile * shape.num_kv_heads * tiles_per_block
        self._room = np.full(num_blocks * self._block_bytes + 2 * GUARD_BYTES, POISON, np.uint8)
        # The last block belongs to nobody: tables are padded with it, and it stays poisoned.
        self._free = rng.permutation(num_blocks - 1).tolist()
        self._poisoned = num_blocks - 1
        self.struct = KvStruct(
            data=self._room.ctypes.data + GUARD_BYTES,
            bytes=num_blocks * self._block_bytes,
            kind=kind,
            num_kv_heads=shape.num_kv_heads,
            key_dim=shape.key_dim,
            value_dim=shape.value_dim,
        )

    def add(self, q: Array, k: Array, v: Array) -> Tokens:
        """A sequence with blocks of its own, cleared."""
        table = [self._free.pop() for _ in range(-(-len(q) // self.block_tokens))]
        for block in table:
            start = GUARD_BYTES + block * self._block_bytes
            self._room[start : start + self._block_bytes] = 0
        return Tokens(q, k, v, np.array(table, np.int64))

    def attend(self, *work: tuple[Tokens, int], team_size: int = 2) -> None:
        """One call: the next tokens of these sequences; results go to their `outputs`."""
        batch, memory = self.batch(work)
        parts = [[getattr(s, name)[s.done : s.done + count] for s, count in work] for name in "qkv"]
        q, k, v = (np.concatenate(part).astype(np.float32) for part in parts)
        shape = (len(q) + 1, self.shape.num_heads, self.shape.value_dim)
        out = np.full(shape, np.nan, np.float32)
        if self.shape.sinks is not None:
            memory = [*memory, self.shape.sinks]
        how = self.shape.struct
        heads = HeadsStruct(*map(floats, (q, k, v)), address(out), out[:-1].size)
        args = (TEAM, self.struct, how, batch, heads)
        memory = [*memory, self._room, q, k, v, out]
        code = self.runner.call("mr_attend", *args, memory=memory, team_size=team_size)
        assert code == 0, f"error code {code}"
        assert np.isnan(out[-1]).all(), "written behind the last token"
        self._check_others()
        start = 0
        for sequence, count in work:
            sequence.outputs.append(out[start : start + count])
            sequence.done += count
            start += count

    def batch(self, work: Sequence[tuple[Tokens, int]]) -> tuple[BatchStruct, list[Array]]:
        counts = np.array([count for _, count in work], np.int64)
        ends = np.array([s.done + count for s, count in work], np.int64)
        positions = np.concatenate([np.arange(s.done, s.done + count) for s, count in work])
        cu_seqlens = np.concatenate(([0], np.cumsum(counts)))
        width = int(max(-(-ends // self.block_tokens)))
        tables = np.full((len(work), width), self._poisoned, np.int64)
        for row, (sequence, _) in enumerate(work):
            own = -(-int(ends[row]) // self.block_tokens)
            tables[row, :own] = sequence.table[:own]
        struct = BatchStruct(
            num_rows=len(work),
            num_tokens=int(counts.sum()),
            num_samples=0,
            table_width=width,
            tiles_per_block=self.tiles_per_block,
            positions=numbers(positions),
            cu_seqlens_q=numbers(cu_seqlens),
            context_lens=numbers(ends),
            block_tables=numbers(tables),
        )
        return struct, [positions, cu_seqlens, ends, tables]

    def _check_others(self) -> None:
        blocks = self._room[GUARD_BYTES:-GUARD_BYTES].reshape(-1, self._block_bytes)
        guards = np.concatenate([self._room[:GUARD_BYTES], self._room[-GUARD_BYTES:]])
        assert (guards == POISON).all(), "written outside of the cache"
        assert (blocks[[*self._free, self._poisoned]] == POISON).all(), "written to others' blocks"
