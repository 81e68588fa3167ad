"""Paged attention in plain torch: the reference that runs anywhere.

Decode rows are gathered by block table in buckets of similar context and multiplied batched; the
query heads that share a K/V head form the rows of one small matrix, so that K and V are read once.
Prefill rows go one by one, in tiles of queries that see only the keys they may.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn import functional

from millrace.engine.batch import Batch, IntArray
from millrace.engine.tensors import to_device
from millrace.engine.torch_kv_cache import KVCache

QUERY_TILE = 128
# A bucket may waste up to half of its shortest row's blocks, or this many, in padding.
BUCKET_SLACK_BLOCKS = 4


@dataclass(frozen=True, slots=True)
class Bucket:
    """Decode rows [start, end) of the batch, gathered over the same number of blocks."""

    start: int
    end: int
    gather: torch.Tensor  # [rows * Hkv * blocks] rows of the cache seen as [blocks * Hkv, B * D]
    hidden: torch.Tensor  # [rows, 1, 1, blocks * B] True where a key must not be seen


@dataclass(frozen=True, slots=True)
class Span:
    """A prefill row: its tokens [start, end) of the batch end a context of `context_len` tokens."""

    start: int
    end: int
    context_len: int
    blocks: torch.Tensor  # [blocks]

    @property
    def first_position(self) -> int:
        """Position of the row's first new token: also how many tokens were cached before."""
        return self.context_len - (self.end - self.start)


@dataclass(slots=True)
class TorchMetadata:
    """Index tensors of one step, shared by all layers with the same heads and window."""

    batch: Batch
    slots: torch.Tensor  # [T]
    block_tables: torch.Tensor  # [R, blocks]
    spans: list[Span]
    writes: dict[int, torch.Tensor] = field(default_factory=dict)
    buckets: dict[tuple[int, int | None], list[Bucket]] = field(default_factory=dict)
    masks: dict[tuple[int, int, int | None], torch.Tensor] = field(default_factory=dict)


class TorchAttention:
    """The `torch` backend; see `AttentionBackend`."""

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache

    def prepare(self, batch: Batch) -> TorchMetadata:
        """Spans of the prefill rows; the rest is made when a layer first needs it."""
        device = self._cache.keys[0].device
        tables = to_device(batch.block_tables, device)
        spans = []
        for row in range(batch.num_decode_rows, len(batch.work)):
            context_len = int(batch.context_lens[row])
            num_blocks = -(-context_len // batch.block_size)
            start, end = int(batch.cu_seqlens_q[row]), int(batch.cu_seqlens_q[row + 1])
            spans.append(Span(start, end, context_len, tables[row, :num_blocks]))
        slots = to_device(batch.slot_mapping, device)
        return TorchMetadata(batch, slots, tables, spans)

    def forward(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        metadata: TorchMetadata,
        scale: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See `AttentionBackend.forward`."""
        self._write(layer, k, v, metadata)
        out = q.new_empty((q.shape[0], q.shape[1], v.shape[2]))
        for bucket in _buckets(metadata, k.shape[1], sliding_window):
            queries = q[bucket.start : bucket.end]
            keys, values = self._gather(layer, bucket, k.shape[1])
            out[bucket.start : bucket.end] = _decode(
                queries, keys, values, bucket.hidden, scale, softcap, sinks
            )
        for span in metadata.spans:
            queries = q[span.start : span.end].transpose(0, 1)
            if span.first_position == 0:
                keys = k[span.start : span.end].transpose(0, 1)
                values = v[span.start : span.end].transpose(0, 1)
            else:
                keys = _row_view(self._cache.keys[layer], span)
                values = _row_view(self._cache.values[layer], span)
            prefill = _Prefill(metadata, span.first_position, scale, sliding_window, softcap, sinks)
            prefill.run(queries, keys, values, out[span.start : span.end])
        return out

    def _write(self, layer: int, k: torch.Tensor, v: torch.Tensor, metadata: TorchMetadata) -> None:
        num_tokens, num_kv_heads = k.shape[:2]
        index = metadata.writes.get(num_kv_heads)
        if index is None:
            slots = metadata.slots
            size = self._cache.block_size
            heads = torch.arange(num_kv_heads, device=slots.device)
            block_heads = (slots // size)[:, None] * num_kv_heads + heads
            index = (block_heads * size + (slots % size)[:, None]).flatten()
            metadata.writes[num_kv_heads] = index
        for cache, new in ((self._cache.keys[layer], k), (self._cache.values[layer], v)):
            flat = cache.view(-1, cache.shape[-1])
            flat.index_copy_(0, index, new.reshape(num_tokens * num_kv_heads, -1))

    def _gather(
        self, layer: int, bucket: Bucket, num_kv_heads: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of a bucket, [rows * Hkv, keys, dim] each."""
        num_pairs = (bucket.end - bucket.start) * num_kv_heads
        gathered = []
        for cache in (self._cache.keys[layer], self._cache.values[layer]):
            by_head = cache.view(cache.shape[0] * num_kv_heads, -1)
            blocks = by_head.index_select(0, bucket.gather)
            gathered.append(blocks.view(num_pairs, -1, cache.shape[-1]))
        return gathered[0], gathered[1]


def _buckets(
    metadata: TorchMetadata, num_kv_heads: int, sliding_window: int | None
) -> list[Bucket]:
    key = (num_kv_heads, sliding_window)
    found = metadata.buckets.get(key)
    if found is None:
        found = _build_buckets(metadata, num_kv_heads, sliding_window)
        metadata.buckets[key] = found
    return found


def _build_buckets(
    metadata: TorchMetadata, num_kv_heads: int, sliding_window: int | None
) -> list[Bucket]:
    batch, tables = metadata.batch, metadata.block_tables
    context_lens = batch.context_lens[: batch.num_decode_rows]
    first_keys = context_lens * 0
    if sliding_window is not None:
        first_keys = (context_lens - sliding_window).clip(min=0)
    first_blocks = first_keys // batch.block_size
    last_blocks = (context_lens - 1) // batch.block_size
    buckets = []
    for start, end in split_by_size(last_blocks - first_blocks + 1):
        device = tables.device
        columns = torch.arange(int((last_blocks - first_blocks)[start:end].max()) + 1)
        first = torch.from_numpy(first_blocks[start:end])[:, None]
        last = torch.from_numpy(last_blocks[start:end])[:, None]
        chosen = torch.minimum(first + columns, last).to(device)
        blocks = tables[start:end].gather(1, chosen)
        heads = torch.arange(num_kv_heads, device=device)
        gather = blocks[:, None, :] * num_kv_heads + heads[:, None]
        keys = first * batch.block_size + torch.arange(len(columns) * batch.block_size)
        unseen = keys >= torch.from_numpy(context_lens[start:end])[:, None]
        before = keys < torch.from_numpy(first_keys[start:end])[:, None]
        hidden = (unseen | before)[:, None, None, :].to(device)
        buckets.append(Bucket(start, end, gather.flatten(), hidden))
    return buckets


def split_by_size(sizes: IntArray) -> list[tuple[int, int]]:
    """Cuts rows of about rising size (in blocks) into runs [start, end) of similar size."""
    runs: list[tuple[int, int]] = []
    start = 0
    for index, size in enumerate(sizes.tolist()):
        shortest = int(sizes[start])
        if size > max(shortest * 3 // 2, shortest + BUCKET_SLACK_BLOCKS):
            runs.append((start, index))
            start = index
    if start < len(sizes):
        runs.append((start, len(sizes)))
    return runs


def _decode(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    hidden: torch.Tensor,
    scale: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """One query per row: q [R, H, D], keys and values [R * Hkv, S, dim] → [R, H, Dv]."""
    num_rows, num_heads, dim = q.shape
    num_kv_heads = keys.shape[0] // num_rows
    group = num_heads // num_kv_heads
    queries = (q * scale).reshape(num_rows * num_kv_heads, group, dim)
    scores = torch.bmm(queries, keys.transpose(1, 2)).float()
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.view(num_rows, num_kv_heads, group, -1).masked_fill_(hidden, float("-inf"))
    weights = _softmax(scores, None if sinks is None else sinks.view(num_kv_heads, group, 1))
    weights = weights.to(values.dtype).view(num_rows * num_kv_heads, group, -1)
    return torch.bmm(weights, values).view(num_rows, num_heads, -1)


def _softmax(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    if sinks is None:
        return scores.softmax(-1)
    column = sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)
    return torch.cat((scores, column), -1).softmax(-1)[..., :-1]


def _row_view(cache: torch.Tensor, span: Span) -> torch.Tensor:
    """A row's K or V up to its context, [Hkv, context, dim]."""
    blocks = cache.index_select(0, span.blocks).transpose(0, 1)
    return blocks.reshape(cache.shape[1], -1, cache.shape[3])[:, : span.context_len]


@dataclass(frozen=True, slots=True)
class _Prefill:
    """Attention of one row's new tokens, tile by tile."""

    metadata: TorchMetadata
    first_position: int
    scale: float
    sliding_window: int | None
    softcap: float | None
    sinks: torch.Tensor | None

    def run(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, out: torch.Tensor
    ) -> None:
        """q [H, n, D], keys and values [Hkv, context, dim]; fills out [n, H, Dv]."""
        group = q.shape[0] // keys.shape[0]
        # Expanded rather than grouped: not every device's fused kernel takes grouped heads.
        keys = keys.repeat_interleave(group, 0) if group > 1 else keys
        values = values.repeat_interleave(group, 0) if group > 1 else values
        for start in range(0, q.shape[1], QUERY_TILE):
            end = min(start + QUERY_TILE, q.shape[1])
            low = 0
            if self.sliding_window is not None:
                low = max(0, self.first_position + start - self.sliding_window + 1)
            high = self.first_position + end
            tile = self._attend(
                q[:, start:end],
                keys[:, low:high],
                values[:, low:high],
                self._visible(self.first_position + start, low, end - start, high - low, q.device),
            )
            out[start:end] = tile.transpose(0, 1)

    def _attend(
        self, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, visible: torch.Tensor
    ) -> torch.Tensor:
        if self.softcap is None and self.sinks is None:
            return functional.scaled_dot_product_attention(
                q[None], keys[None], values[None], attn_mask=visible, scale=self.scale
            )[0]
        scores = torch.bmm(q * self.scale, keys.transpose(1, 2)).float()
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        scores = scores.masked_fill_(~visible, float("-inf"))
        sinks = None if self.sinks is None else self.sinks.view(-1, 1, 1)
        return torch.bmm(_softmax(scores, sinks).to(values.dtype), values)

    def _visible(
        self, position: int, low: int, num_queries: int, num_keys: int, device: torch.device
    ) -> torch.Tensor:
        """[queries, keys], True where a query at `position` and on may see a key from `low` on."""
        key = (position - low, num_queries, self.sliding_window)
        mask = self.metadata.masks.get(key)
        if mask is None:
            distance = torch.arange(num_queries, device=device)[:, None] + (position - low)
            distance = distance - torch.arange(num_keys, device=device)
            mask = distance >= 0
            if self.sliding_window is not None:
                mask &= distance < self.sliding_window
            self.metadata.masks[key] = mask
        return mask
