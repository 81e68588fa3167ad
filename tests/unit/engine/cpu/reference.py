"""What the kernels compute, in float64, over numbers rounded where the kernels round them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.engine.kernels.cpu.instruction_paths import InstructionPath
from millrace.engine.kernels.cpu.library import BF16, F32, INT4, INT8

Array = npt.NDArray[Any]

# The largest relative error of rounding to the nearest: half of the distance from 1 to the next.
FLOAT_ROUNDING = 2.0**-24
BF16_ROUNDING = 2.0**-8
# Numbers that share a scale in int8 and int4 weights, and the largest input of 16 bits.
GROUP = 32
INPUT_LIMIT = 32512


def to_bf16(x: Array) -> Array:
    """float32 → the nearest bfloat16, ties to even, as float32."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) & np.uint32(0xFFFF0000)
    return rounded.astype(np.uint32).view(np.float32)


def rounds_inputs(path: InstructionPath) -> bool:
    """True where bfloat16 weights meet bfloat16 inputs; elsewhere inputs stay float32."""
    return path.name in ("amx", "avx512_bf16", "amx_emulated")


def is_tiled(path: InstructionPath) -> bool:
    """True where products of bfloat16 tiles take the place of all others but those of float32."""
    return path.name in ("amx", "amx_emulated")


def quantize(x: Array, limit: int = 127) -> tuple[Array, Array]:
    """Rows of float32 → whole numbers up to `limit` and the scale of each row."""
    most = np.abs(x).max(axis=-1, keepdims=True).astype(np.float32)
    inverse = np.divide(np.float32(limit), most, out=np.zeros_like(most), where=most > 0)
    return np.rint(x * inverse).astype(np.float64), most / np.float32(limit)


def stored(x: Array, kind: int) -> Array:
    """Rows as a cache of `kind` holds them, in float64."""
    if kind == BF16:
        return to_bf16(x).astype(np.float64)
    if kind == INT8:
        numbers, scales = quantize(x)
        return numbers * scales.astype(np.float64)
    return x.astype(np.float64)


def stored_matrix(weight: Array, kind: int, is_tiled: bool) -> Array:
    """A matrix [columns, k] as panels of `kind` hold it, in float64.

    Tiles multiply what is bfloat16, so `is_tiled` rounds once more.
    """
    if kind not in (INT8, INT4):
        return stored(weight, kind)
    scaled, least = stored_groups(weight, kind)
    exact = scaled + least
    return to_bf16(exact).astype(np.float64) if is_tiled else exact


def stored_groups(weight: Array, kind: int) -> tuple[Array, Array]:
    """What Int8 and Int4 add up to a matrix [columns, k]: scaled numbers, and least values.

    32 neighbours along K share both. Int8: the scale is the bfloat16 not below a 127th of the
    largest, the least value 0. Int4: the nearest bfloat16 of the least and of a 15th of the range.
    """
    columns, k = weight.shape
    num_groups = -(-k // GROUP)
    wide = np.full((columns, num_groups * GROUP), np.nan, np.float32)
    wide[:, :k] = weight
    wide = wide.reshape(columns, num_groups, GROUP)
    low, high = (reduce(wide, axis=-1, keepdims=True) for reduce in (np.nanmin, np.nanmax))
    if kind == INT8:
        wanted = np.maximum(-low, high) / np.float32(127)
        scales, least = to_bf16(wanted), np.zeros_like(low)
        above = (scales.view(np.uint32) + np.uint32(1 << 16)).view(np.float32)
        scales = np.where(scales < wanted, above, scales)
    else:
        scales, least = to_bf16((high - low) / np.float32(15)), to_bf16(low)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    numbers = np.rint((np.nan_to_num(wide) - least) * inverse)
    if kind == INT4:
        numbers = numbers.clip(0, 15)
    assert np.abs(numbers).max() <= 127
    parts = (numbers.astype(np.float64) * scales, np.broadcast_to(least, wide.shape))
    scaled, offsets = (part.reshape(columns, -1)[:, :k] for part in parts)
    return scaled, offsets.astype(np.float64)


def taken(x: Array, kind: int, path: InstructionPath) -> Array:
    """Input rows as they meet a matrix of `kind`, in float64."""
    if kind in (INT8, INT4) and not is_tiled(path):
        numbers, scales = quantize(x, INPUT_LIMIT)
        return numbers * scales.astype(np.float64)
    return stored(x, BF16 if kind != F32 and rounds_inputs(path) else F32)


def multiply(
    x: Array, weight: Array, bias: Array | None, kind: int, path: InstructionPath
) -> tuple[Array, Array]:
    """x [rows, k] times weight [columns, k], and how far a float32 result may be from it."""
    rows, matrix = taken(x, kind, path), stored_matrix(weight, kind, is_tiled(path))
    exact = rows @ matrix.T + (0.0 if bias is None else bias.astype(np.float64))
    parts = [matrix] if kind != INT4 else stored_groups(weight, kind)
    sizes = np.abs(rows) @ sum(np.abs(part.T) for part in parts)
    # Rounding errors of either sign: they grow with the root of how many there are.
    sums_groups = kind in (INT8, INT4) and not is_tiled(path)
    num_sums = len(parts) * x.shape[1] / (GROUP if sums_groups else 1)
    roundings = 8.0 + 4.0 * np.sqrt(num_sums)
    return exact, FLOAT_ROUNDING * (roundings * sizes + 2 * np.abs(exact)) + 1e-30


def attention_inputs(kind: int, path: InstructionPath) -> int:
    """What queries and weights are rounded to where they meet K/V of `kind`; INT8: to 16 bits."""
    if kind == INT8 and not is_tiled(path):
        return INT8
    return BF16 if kind != F32 and rounds_inputs(path) else F32


def attend(
    q: Array,
    k: Array,
    v: Array,
    kind: int,
    inputs: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Array | None = None,
) -> tuple[Array, Array]:
    """Causal attention of a whole sequence, and how far a result may be from it.

    q [T, heads, D], k [T, kv heads, D], v [T, kv heads, Dv]; `kind` is that of the cache,
    `inputs` as by `attention_inputs`.
    """
    num_tokens, num_heads, _ = q.shape
    group = num_heads // k.shape[1]
    numbers, scales = quantize(q, INPUT_LIMIT)
    queries = numbers * scales.astype(np.float64) if inputs == INT8 else stored(q, inputs)
    keys = np.repeat(stored(k, kind), group, axis=1)
    values = np.repeat(stored(v, kind), group, axis=1)
    by_head = [array.transpose(1, 0, 2) for array in (queries, keys, values)]
    scores = by_head[0] @ by_head[1].transpose(0, 2, 1) * scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    distance = np.arange(num_tokens)[:, None] - np.arange(num_tokens)[None, :]
    unseen = (distance < 0) | (distance >= window if window else False)
    scores[:, unseen] = -np.inf
    top = scores.max(axis=-1, keepdims=True)
    if sinks is not None:
        top = np.maximum(top, sinks[:, None, None])
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks[:, None, None] - top)
    weights /= total
    out, sizes = ((weights @ v).transpose(1, 0, 2) for v in (by_head[2], np.abs(by_head[2])))
    # Scores come from sums of float32 products: their error moves the weights by as much.
    lengths = np.abs(queries).sum(-1).max() * np.abs(keys).max() * scale
    share = FLOAT_ROUNDING * (64.0 + 8.0 * lengths) + (softcap * 2e-6)
    if inputs == BF16:
        share += BF16_ROUNDING
    allowed = share * sizes + 1e-6 * np.abs(values).max() * (kind != F32) + 1e-30
    if inputs == INT8:
        allowed += _rounding_of_weights(v, weights, group)
    return out, allowed


def _rounding_of_weights(v: Array, weights: Array, group: int) -> Array:
    """[T, heads, Dv]: seven standard deviations of what weights [heads, T, T] of 16 bits cost.

    A weight times the scale of its value is rounded to a 32512th of the largest in its row.
    """
    numbers, scales = quantize(v)
    squares = np.repeat(numbers * numbers, group, axis=1).transpose(1, 0, 2)
    by_key = np.repeat(scales[..., 0].astype(np.float64), group, axis=1).T[:, None, :]
    steps = (weights * by_key).max(axis=-1, keepdims=True) / INPUT_LIMIT
    cost: Array = 7 * 12**-0.5 * steps * np.sqrt((weights > 0) @ squares)
    return cost.transpose(1, 0, 2)
