"""A small random decoder: one step of it by the kernels, and the same in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from millrace.engine.kernels.cpu.library import (
    BF16,
    F32,
    INT4,
    INT8,
    TILE_TOKENS,
    BatchStruct,
    FloatsStruct,
    KvStruct,
    LayerStruct,
    MatrixStruct,
    ModelStruct,
    OutputStruct,
    address,
    floats,
    numbers,
    padded,
    padded_columns,
)
from millrace.engine.models.cpu_llama_packing import interleave_panels
from tests.unit.engine.cpu import reference
from tests.unit.engine.cpu.kernel_calls import POISON, pack
from tests.unit.engine.cpu.kernel_runner import TEAM, KernelRunner

Array = npt.NDArray[Any]

NORM_EPS = 1e-5


@dataclass(frozen=True)
class Sizes:
    """Nothing is a multiple of a panel."""

    hidden: int = 84
    intermediate: int = 70
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 20
    vocab: int = 131
    windows: tuple[int, ...] = (0, 40)


@dataclass
class Layer:
    """Weights of a layer as [columns, k]; biases and head norms may be None."""

    input_norm: Array
    qkv: Array
    qkv_bias: Array | None
    q_norm: Array | None
    k_norm: Array | None
    o: Array
    o_bias: Array | None
    post_norm: Array
    gate_up: Array
    gate_up_bias: Array | None
    down: Array
    down_bias: Array | None


@dataclass
class Text:
    """Tokens of one sequence and its blocks, and the logits of every step's last token."""

    ids: Array
    table: Array
    done: int = 0
    logits: dict[int, Array] = field(default_factory=dict)


class Decoder:
    """Weights, drawn anew, in the kernels' structures, with a cache of `num_blocks` blocks."""

    def __init__(
        self,
        runner: KernelRunner,
        rng: np.random.Generator,
        kind: int,
        kv_kind: int,
        sizes: Sizes | None = None,
        has_biases: bool = True,
        num_blocks: int = 40,
    ) -> None:
        self.runner, self.kind, self.kv_kind = runner, kind, kv_kind
        self.sizes = sizes or Sizes()
        self.memory: list[Array] = []
        draw = _Draw(rng, self.sizes, has_biases)
        self.layers = [draw.layer() for _ in self.sizes.windows]
        self.embedding = draw.matrix(self.sizes.vocab, self.sizes.hidden) * np.float32(4)
        self.final_norm = draw.norm(self.sizes.hidden)
        self.head = draw.matrix(self.sizes.vocab, self.sizes.hidden)
        half = self.sizes.head_dim // 2
        self.frequencies = (10000.0 ** -(np.arange(half) / half)).astype(np.float32)
        self.structs = self._make_structs()
        self._make_cache(num_blocks, rng)

    def add(self, ids: Array) -> Text:
        """A sequence with blocks of its own, cleared."""
        table = [self._free.pop() for _ in range(-(-len(ids) // TILE_TOKENS))]
        self.room[:, table] = 0
        return Text(ids, np.array(table, np.int64))

    def run(
        self,
        *work: tuple[Text, int],
        team_size: int = 2,
        wants: Callable[[int], bool] = lambda row: True,
    ) -> Array:
        """One step; every row samples. Returns the likeliest tokens; logits go to the texts."""
        batch, memory = batch_of(work)
        num_rows = len(work)
        wanted = np.array([wants(row) for row in range(num_rows)], np.uint8)
        logits = np.full((num_rows, padded_columns(self.sizes.vocab)), np.nan, np.float32)
        likeliest = np.full(num_rows, -1, np.int64)
        progress = np.zeros(1, np.int64)
        out = OutputStruct(
            wants_logits=address(wanted),
            num_wanted=num_rows,
            logits=address(logits),
            num_logits=logits.size,
            likeliest=address(likeliest),
            num_likeliest=num_rows,
            progress=address(progress),
        )
        args = (self.structs, TEAM, self.caches, len(self.caches), batch, out)
        reached: list[Any] = [*self.memory, self.layer_structs, self.room, *memory]
        reached += [wanted, logits, likeliest, progress]
        code = self.runner.call("mr_model_run", *args, memory=reached, team_size=team_size)
        assert code == 0, f"error code {code}"
        assert progress[0] == 2 * len(self.layers)
        for row, (text, count) in enumerate(work):
            text.done += count
            if wanted[row]:
                text.logits[text.done - 1] = logits[row, : self.sizes.vocab]
            else:
                assert np.isnan(logits[row]).all(), "logits nobody asked for"
        return likeliest

    @property
    def _head_kind(self) -> int:
        return INT8 if self.kind == INT4 else self.kind

    def _matrix(self, weight: Array, bias: Array | None, kind: int | None = None) -> MatrixStruct:
        packed = pack(self.runner, self.kind if kind is None else kind, weight, bias)
        self.memory += packed.memory
        return packed.struct

    def _keep(self, array: Array | None, pads: bool = True) -> FloatsStruct:
        if array is None:
            return FloatsStruct()
        self.memory.append(padded(array) if pads else np.ascontiguousarray(array))
        return floats(self.memory[-1])

    def _make_structs(self) -> ModelStruct:
        sizes = self.sizes
        pairs = zip(self.layers, sizes.windows, strict=True)
        layers = [self._layer_struct(layer, window) for layer, window in pairs]
        self.layer_structs = (LayerStruct * len(layers))(*layers)
        embedding = self.embedding
        if self.kind != F32:
            embedding = (reference.to_bf16(embedding).view(np.uint32) >> 16).astype(np.uint16)
        self.memory.append(embedding)
        return ModelStruct(
            num_layers=len(layers),
            hidden=sizes.hidden,
            intermediate=sizes.intermediate,
            num_heads=sizes.num_heads,
            num_kv_heads=sizes.num_kv_heads,
            head_dim=sizes.head_dim,
            vocab=sizes.vocab,
            embedding_kind=F32 if self.kind == F32 else BF16,
            norm_eps=NORM_EPS,
            embedding=address(embedding),
            embedding_bytes=embedding.nbytes,
            frequencies=self._keep(self.frequencies, pads=False),
            final_norm=self._keep(self.final_norm),
            head=self._matrix(self.head, None, self._head_kind),
            layers=self.layer_structs,
        )

    def _layer_struct(self, layer: Layer, window: int) -> LayerStruct:
        gate_up = interleave_panels(torch.from_numpy(layer.gate_up)).numpy()
        bias = layer.gate_up_bias
        if bias is not None:
            bias = interleave_panels(torch.from_numpy(bias[:, None])).numpy()[:, 0]
        return LayerStruct(
            input_norm=self._keep(layer.input_norm),
            qkv=self._matrix(layer.qkv, layer.qkv_bias),
            q_norm=self._keep(layer.q_norm, pads=False),
            k_norm=self._keep(layer.k_norm, pads=False),
            o=self._matrix(layer.o, layer.o_bias),
            post_norm=self._keep(layer.post_norm),
            gate_up=self._matrix(gate_up, bias),
            down=self._matrix(layer.down, layer.down_bias),
            window=window,
        )

    def _make_cache(self, num_blocks: int, rng: np.random.Generator) -> None:
        sizes = self.sizes
        tile = self.runner.call("mr_tile_bytes", self.kv_kind, sizes.head_dim, sizes.head_dim)
        shape = (len(self.layers), num_blocks, tile * sizes.num_kv_heads)
        self.room = np.full(shape, POISON, np.uint8)
        self._free = rng.permutation(num_blocks).tolist()
        self.caches = (KvStruct * len(self.layers))(
            *(
                KvStruct(
                    data=self.room[index].ctypes.data,
                    bytes=self.room[index].nbytes,
                    kind=self.kv_kind,
                    num_kv_heads=sizes.num_kv_heads,
                    key_dim=sizes.head_dim,
                    value_dim=sizes.head_dim,
                )
                for index in range(len(self.layers))
            )
        )

    def replace_head(self, head: Array) -> None:
        """Other weights [vocab, hidden] for the logits."""
        self.head = head.astype(np.float32)
        self.structs = self._make_structs()

    def expected(self, ids: Array) -> Array:
        """Logits of every token in float64, over the weights and K/V that the kernels store."""
        return self._times(self.hidden(ids), self.head, None, self._head_kind)

    def hidden(self, ids: Array) -> Array:
        """What the head multiplies, of every token, in float64."""
        x = reference.stored(self.embedding, F32 if self.kind == F32 else BF16)[ids]
        for layer, window in zip(self.layers, self.sizes.windows, strict=True):
            x = x + self._attended(layer, window, _normed(x, layer.input_norm))
            wide = self._times(_normed(x, layer.post_norm), layer.gate_up, layer.gate_up_bias)
            gate, up = np.split(wide, 2, axis=1)
            x = x + self._times(gate / (1 + np.exp(-gate)) * up, layer.down, layer.down_bias)
        return _normed(x, self.final_norm)

    def _attended(self, layer: Layer, window: int, x: Array) -> Array:
        sizes = self.sizes
        heads, kv_heads = sizes.num_heads, sizes.num_kv_heads
        qkv = self._times(x, layer.qkv, layer.qkv_bias).reshape(len(x), -1, sizes.head_dim)
        q, k, v = np.split(qkv, [heads, heads + kv_heads], axis=1)
        q, k = self._turned(q, layer.q_norm), self._turned(k, layer.k_norm)
        out, _ = reference.attend(q, k, v, self.kv_kind, F32, sizes.head_dim**-0.5, window)
        return self._times(out.reshape(len(x), -1), layer.o, layer.o_bias)

    def _turned(self, heads: Array, norm: Array | None) -> Array:
        if norm is not None:
            heads = _normed(heads, norm)
        angles = np.arange(len(heads))[:, None, None] * self.frequencies.astype(np.float64)
        low, high = np.split(heads, 2, axis=2)
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=2)

    def _times(self, x: Array, weight: Array, bias: Array | None, kind: int | None = None) -> Array:
        is_tiled = reference.is_tiled(self.runner.path)
        kind = self.kind if kind is None else kind
        out = x @ reference.stored_matrix(weight, kind, is_tiled).T
        added: Array = out if bias is None else out + bias
        return added


class _Draw:
    def __init__(self, rng: np.random.Generator, sizes: Sizes, has_biases: bool) -> None:
        self._rng, self._sizes, self._has_biases = rng, sizes, has_biases

    def matrix(self, columns: int, k: int) -> Array:
        drawn: Array = self._rng.standard_normal((columns, k)).astype(np.float32)
        return drawn * np.float32(k**-0.5)

    def norm(self, count: int) -> Array:
        return (1 + 0.2 * self._rng.standard_normal(count)).astype(np.float32)

    def bias(self, count: int) -> Array | None:
        drawn = self._rng.standard_normal(count).astype(np.float32) * np.float32(0.3)
        return drawn if self._has_biases else None

    def layer(self) -> Layer:
        sizes = self._sizes
        attended = sizes.num_heads * sizes.head_dim
        columns = attended + 2 * sizes.num_kv_heads * sizes.head_dim
        return Layer(
            input_norm=self.norm(sizes.hidden),
            qkv=self.matrix(columns, sizes.hidden),
            qkv_bias=self.bias(columns),
            q_norm=self.norm(sizes.head_dim) if self._has_biases else None,
            k_norm=self.norm(sizes.head_dim) if self._has_biases else None,
            o=self.matrix(sizes.hidden, attended),
            o_bias=self.bias(sizes.hidden),
            post_norm=self.norm(sizes.hidden),
            gate_up=self.matrix(2 * sizes.intermediate, sizes.hidden),
            gate_up_bias=self.bias(2 * sizes.intermediate),
            down=self.matrix(sizes.hidden, sizes.intermediate),
            down_bias=self.bias(sizes.hidden),
        )


def _normed(x: Array, weight: Array) -> Array:
    normed: Array = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + NORM_EPS) * weight
    return normed


def batch_of(work: Sequence[tuple[Text, int]]) -> tuple[BatchStruct, list[Array]]:
    """A step in which every row samples, and its arrays in the order of the structure."""
    counts = np.array([count for _, count in work], np.int64)
    ends = np.array([text.done + count for text, count in work], np.int64)
    ids = np.concatenate([text.ids[text.done : text.done + count] for text, count in work])
    positions = np.concatenate([np.arange(text.done, text.done + n) for text, n in work])
    cu_seqlens = np.concatenate(([0], np.cumsum(counts)))
    width = int(max(-(-ends // TILE_TOKENS)))
    tables = np.zeros((len(work), width), np.int64)
    for row, (text, _) in enumerate(work):
        own = -(-int(ends[row]) // TILE_TOKENS)
        tables[row, :own], tables[row, own:] = text.table[:own], text.table[0]
    last = cu_seqlens[1:] - 1
    ids = ids.astype(np.int64)
    struct = BatchStruct(
        num_rows=len(work),
        num_tokens=int(counts.sum()),
        num_samples=len(work),
        table_width=width,
        tiles_per_block=1,
        input_ids=numbers(ids),
        positions=numbers(positions),
        cu_seqlens_q=numbers(cu_seqlens),
        context_lens=numbers(ends),
        block_tables=numbers(tables),
        sample_indices=numbers(last),
    )
    return struct, [ids, positions, cu_seqlens, ends, tables, last]
