"""Which tokens may be drawn at all: top_k, then top_p, then min_p, exact, without a full sort.

Each of the three keeps a prefix of the tokens ordered by (logit descending, id ascending), so only
a prefix needs sorting. A lower bound on the kept logits, found in one pass over the row, picks the
few tokens that are looked at more closely.

- top_k keeps the k likeliest tokens and all that tie with the last of them.
- top_p keeps a token while the mass of the tokens before it is below top_p times the mass that
  top_k left; the likeliest token always stays.
- min_p keeps a token whose probability is at least min_p times the likeliest token's.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from millrace.core.sampling import SamplingSpec

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]
Scores = npt.NDArray[np.float64]

# top_p is first tried on about this many of the likeliest tokens, which is mostly enough, then on
# this many times as many.
NUCLEUS_WINDOW = 128
NUCLEUS_WINDOW_GROWTH = 8

_MIN_BUCKETS = 1024
# Sums of the same weights in another order differ by far less.
_SUM_MARGIN = 1.0 + 1e-9
_FLOAT32_MIN = float(np.finfo(np.float32).min)


def is_truncated(spec: SamplingSpec, vocab_size: int) -> bool:
    """True where `spec` can keep a token of `vocab_size` from being drawn."""
    return 0 < spec.top_k < vocab_size or spec.top_p < 1.0 or spec.min_p > 0.0


def kept_tokens(logits: Logits, peak: float, spec: SamplingSpec) -> Ids:
    """The ids, ascending, of the tokens that may be drawn.

    `logits` [V]; `peak` is their finite maximum.
    """
    if 0 < spec.top_k < len(logits):
        token_ids = _top_k_tokens(logits, spec.top_k)
        if spec.top_p == 1.0 and spec.min_p == 0.0:
            return token_ids
        return _cut(token_ids, logits[token_ids], peak, spec, None)
    if spec.top_p == 1.0:
        token_ids = np.flatnonzero(logits >= _min_p_floor(peak, spec))
        return _cut(token_ids, logits[token_ids], peak, spec, None)
    return _nucleus(logits, peak, spec)


def likeliest_tokens(logits: Logits, count: int) -> Ids:
    """The `count` likeliest token ids in order, the lower id first where logits tie."""
    token_ids: Ids = np.flatnonzero(logits >= top_floor(logits, count))
    order = np.argsort(-logits[token_ids], kind="stable")
    return token_ids[order[:count]]


def mass(logits: Logits, peak: float, temperature: float = 1.0) -> float:
    """Sum of exp((logit - peak) / temperature) over the row, in float64.

    One numpy row at a time, so the order of summation never depends on the batch.
    """
    weights = np.subtract(logits, peak, dtype=np.float64)
    if temperature != 1.0:
        weights /= temperature
    np.exp(weights, out=weights)
    return float(weights.sum())


def lowered(floor: float) -> np.float32:
    """A float32 safely below `floor`, so that comparing in float32 loses no token."""
    return np.float32(np.nextafter(np.float32(max(floor, _FLOAT32_MIN)), np.float32(-np.inf)))


def top_floor(logits: Logits, count: int) -> np.float32:
    """A value that at least `count` logits reach, and rarely many more.

    The row is split into buckets; `count` buckets have a maximum at or above the count-th largest
    maximum. That takes one vectorised pass, where a selection over the row takes several.
    """
    num_buckets = max(_MIN_BUCKETS, 4 * count)
    depth = len(logits) // num_buckets
    if depth < 4:
        kth = max(len(logits) - count, 0)
        return np.float32(np.partition(logits, kth)[kth])
    maxima = logits[: depth * num_buckets].reshape(depth, num_buckets).max(axis=0)
    return np.float32(np.partition(maxima, num_buckets - count)[num_buckets - count])


def _top_k_tokens(logits: Logits, top_k: int) -> Ids:
    token_ids = np.flatnonzero(logits >= top_floor(logits, top_k))
    if len(token_ids) <= top_k:
        return token_ids
    values = logits[token_ids]
    rank = len(values) - top_k
    kept: Ids = token_ids[values >= np.partition(values, rank)[rank]]
    return kept


def _nucleus(logits: Logits, peak: float, spec: SamplingSpec) -> Ids:
    """top_p, and min_p after it, over the whole vocabulary.

    All tokens below peak + T ln((1 - top_p) / V) together weigh at most 1 - top_p of the likeliest
    one, so none of them is kept: that floor always suffices. Mostly a higher one does.
    """
    total = mass(logits, peak, spec.temperature)
    share = max((1.0 - spec.top_p) / len(logits), math.ulp(0.0))
    lowest = lowered(peak + spec.temperature * math.log(share))
    lowest = max(lowest, _min_p_floor(peak, spec))
    enough = spec.top_p * total * _SUM_MARGIN
    window = NUCLEUS_WINDOW
    while True:
        floor = top_floor(logits, window) if window < len(logits) else lowest
        token_ids = np.flatnonzero(logits >= max(floor, lowest))
        values = logits[token_ids]
        if floor <= lowest or np.exp(_scores(values, peak, spec)).sum() >= enough:
            return _cut(token_ids, values, peak, spec, total)
        window *= NUCLEUS_WINDOW_GROWTH


def _cut(
    token_ids: Ids, logits: Logits, peak: float, spec: SamplingSpec, total: float | None
) -> Ids:
    """top_p and min_p on tokens that hold the kept prefix; without `total` they are all of them."""
    descending = np.sort(logits)[::-1]
    weights = np.exp(_scores(descending, peak, spec))
    num_kept = len(weights)
    if spec.top_p < 1.0:
        cumulated = np.cumsum(weights)
        limit = spec.top_p * (float(cumulated[-1]) if total is None else total)
        num_kept = min(num_kept, int(np.searchsorted(cumulated, limit)) + 1)
    if spec.min_p > 0.0:
        num_kept = min(num_kept, int(np.count_nonzero(weights >= spec.min_p)))
    return _first(token_ids, logits, float(descending[num_kept - 1]), num_kept)


def _first(token_ids: Ids, logits: Logits, last: float, num_kept: int) -> Ids:
    """The `num_kept` tokens with the highest logits, of those that tie with the last the lowest.

    Not by score: float64 may lose the difference of two logits far below the peak.
    """
    is_kept = logits >= last
    num_over = int(np.count_nonzero(is_kept)) - num_kept
    if num_over > 0:
        is_kept[np.flatnonzero(logits == last)[-num_over:]] = False
    return token_ids[is_kept]


def _min_p_floor(peak: float, spec: SamplingSpec) -> np.float32:
    if spec.min_p == 0.0:
        return np.float32(-np.inf)
    return lowered(peak + spec.temperature * math.log(spec.min_p))


def _scores(logits: Logits, peak: float, spec: SamplingSpec) -> Scores:
    return (logits.astype(np.float64) - peak) / spec.temperature
