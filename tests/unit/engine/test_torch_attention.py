"""The reference attention backend against plain float64 attention over ragged batches."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from millrace.core.errors import ConfigError
from millrace.engine.attention import create_attention
from millrace.engine.attention.torch_attention import split_by_size
from millrace.engine.batch import Work, build_batch
from millrace.engine.kv_cache import LayerShape
from millrace.engine.torch_kv_cache import KVCache

BLOCK_SIZE = 8
DIM, VALUE_DIM = 16, 12
# (tokens in the cache before the step, new tokens) per row.
RAGGED = [(0, 1), (7, 1), (8, 1), (63, 1), (0, 5), (0, 8), (9, 7), (40, 150), (0, 140), (200, 1)]


class Case:
    """A batch of rows with scattered blocks in a cache that is NaN wherever no row has written."""

    def __init__(self, seed, lengths, num_kv_heads, group, dtype=torch.float32):
        self.random = torch.Generator().manual_seed(seed)
        self.lengths = lengths
        self.num_kv_heads, self.num_heads = num_kv_heads, num_kv_heads * group
        self.dtype = dtype
        needed = [-(-(cached + new) // BLOCK_SIZE) for cached, new in lengths]
        num_blocks = sum(needed) + 7
        shape = LayerShape(num_kv_heads, DIM, VALUE_DIM)
        self.cache = KVCache([shape, shape], num_blocks, BLOCK_SIZE, dtype, torch.device("cpu"))
        for tensor in (*self.cache.keys, *self.cache.values):
            tensor.fill_(float("nan"))
        order = torch.randperm(num_blocks, generator=self.random).tolist()
        tables = np.full((len(lengths), max(needed)), order.pop(), dtype=np.int64)
        for row, count in enumerate(needed):
            tables[row, :count] = [order.pop() for _ in range(count)]
            self.cache.clear_blocks(tables[row, :count].tolist())
        self.tables, self.needed = tables, needed
        self.keys = [self.normal(c + n, num_kv_heads, DIM) for c, n in lengths]
        self.values = [self.normal(c + n, num_kv_heads, VALUE_DIM) for c, n in lengths]
        self.queries = [self.normal(n, self.num_heads, DIM) for _, n in lengths]

    def normal(self, *shape):
        return torch.randn(shape, generator=self.random).to(self.dtype)

    def run(self, layer=1, **options):
        """The backend's output per row."""
        for row, (cached, _) in enumerate(self.lengths):
            for position in range(cached):
                block = self.tables[row, position // BLOCK_SIZE]
                slot = position % BLOCK_SIZE
                self.cache.keys[layer][block, :, slot] = self.keys[row][position]
                self.cache.values[layer][block, :, slot] = self.values[row][position]
        seats: Any = [
            SimpleNamespace(
                index=row,
                num_computed_tokens=cached,
                token_ids=[1] * (cached + n),
                sample=SimpleNamespace(is_plain_greedy=True),
            )
            for row, (cached, n) in enumerate(self.lengths)
        ]
        work = [Work(seat, n) for seat, (_, n) in zip(seats, self.lengths, strict=True)]
        rows: Any = SimpleNamespace(block_tables=self.tables)
        batch = build_batch(work, rows, BLOCK_SIZE)
        order = [item.row.index for item in batch.work]
        new = [slice(self.lengths[row][0], None) for row in order]
        backend = create_attention("torch", self.cache)
        out = backend.forward(
            layer,
            torch.cat([self.queries[row] for row in order]),
            torch.cat([self.keys[row][cut] for row, cut in zip(order, new, strict=True)]),
            torch.cat([self.values[row][cut] for row, cut in zip(order, new, strict=True)]),
            backend.prepare(batch),
            **options,
        )
        parts = out.split([self.lengths[row][1] for row in order])
        return {row: part for row, part in zip(order, parts, strict=True)}

    def expected(self, row, scale, sliding_window=None, softcap=None, sinks=None):
        cached, new = self.lengths[row]
        group = self.num_heads // self.num_kv_heads
        keys = self.keys[row].double().repeat_interleave(group, 1)
        values = self.values[row].double().repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", self.queries[row].double(), keys) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        position = torch.arange(cached, cached + new)[:, None]
        key = torch.arange(cached + new)[None, :]
        seen = key <= position
        if sliding_window is not None:
            seen &= key > position - sliding_window
        scores = scores.masked_fill(~seen, -math.inf)
        if sinks is not None:
            column = sinks.double()[:, None, None].expand(-1, new, 1)
            weights = torch.cat((scores, column), -1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, values)

    def assert_equal(self, tolerance=2e-5, **options):
        out = self.run(**options)
        for row in range(len(self.lengths)):
            want = self.expected(row, **options)
            torch.testing.assert_close(out[row].double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("group", range(1, 9))
@pytest.mark.parametrize("num_kv_heads", [1, 3])
def test_ragged_batch_equals_float64(group, num_kv_heads):
    Case(group, RAGGED, num_kv_heads, group).assert_equal(scale=0.25)


@pytest.mark.parametrize("sliding_window", [1, 5, 8, 64, 1000])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_sliding_window_equals_float64(sliding_window, softcap):
    case = Case(sliding_window, RAGGED, 2, 3)

    case.assert_equal(scale=0.3, sliding_window=sliding_window, softcap=softcap)


@pytest.mark.parametrize("sliding_window", [None, 6])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_sinks_and_softcap_equal_float64(sliding_window, softcap):
    case = Case(3, RAGGED, 2, 4)

    case.assert_equal(
        scale=0.5, sliding_window=sliding_window, softcap=softcap, sinks=case.normal(8)
    )


@pytest.mark.parametrize("seed", range(6))
def test_random_shapes_equal_float64(seed):
    random = np.random.default_rng(seed)
    lengths = [
        (int(random.integers(0, 90)), int(random.choice([1, 1, 1, int(random.integers(2, 60))])))
        for _ in range(int(random.integers(1, 20)))
    ]
    window = None if seed % 2 else int(random.integers(1, 40))

    Case(seed, lengths, int(random.integers(1, 4)), int(random.integers(1, 9))).assert_equal(
        scale=0.2, sliding_window=window
    )


def test_bfloat16_is_as_close_as_its_rounding_allows():
    Case(1, RAGGED, 2, 3, torch.bfloat16).assert_equal(tolerance=0.03, scale=0.25)


def test_only_the_rows_own_slots_are_written():
    case = Case(2, RAGGED, 2, 2)

    case.run(scale=0.25)

    own = {int(block) for row, n in enumerate(case.needed) for block in case.tables[row, :n]}
    others = [block for block in range(case.cache.num_blocks) if block not in own]
    assert len(others) == 7
    assert case.cache.keys[1][others].isnan().all()
    assert case.cache.values[1][others].isnan().all()
    for row, (cached, new) in enumerate(case.lengths):
        blocks = case.cache.keys[1][case.tables[row, : case.needed[row]]]
        tokens = blocks.transpose(1, 2).flatten(0, 1)
        assert torch.equal(tokens[: cached + new], case.keys[row])
        assert not tokens[cached + new :].any()


def test_buckets_hold_rows_of_similar_size():
    sizes = np.array([1, 2, 5, 6, 7, 10, 11, 40, 41, 60, 90])

    runs = split_by_size(sizes)

    assert runs == [(0, 3), (3, 6), (6, 7), (7, 10), (10, 11)]
    assert split_by_size(np.array([], dtype=np.int64)) == []


def test_unknown_backend_names_the_known_ones():
    cache = KVCache([LayerShape(1, 4, 4)], 1, 8, torch.float32, torch.device("cpu"))

    with pytest.raises(ConfigError, match="'triton'; known are cpu, torch"):
        create_attention("triton", cache)
