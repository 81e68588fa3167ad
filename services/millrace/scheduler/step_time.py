"""How long a step will take, learnt while serving.

    step_ms = a + b * num_tokens + c * kv_tokens + d * num_pairs,
where num_tokens is the flattened batch, kv_tokens the sum of the context lengths of the rows that
decode, and num_pairs counts each token of a chunk with every token before it.

Steps are averaged per kind (sizes within a factor of two), and the costs are the non-negative
least squares of the relative errors over all kinds, each kind counting once. So hours of steady
decoding, which tell of one kind only, do not wash out what is known of prompts, and a kind that has
changed counts as soon as it is met again.
"""

from __future__ import annotations

import math
from collections import OrderedDict

_NUM_COSTS = 4
_NUM_SWEEPS = 4
_MAX_KINDS = 64
# So few cost too little to make another kind of step.
_SMALL_KV_TOKENS = 1024
_SMALL_PAIRS = 4096
# Of a kind's average, what a new step makes up, once that many have been seen.
_NEWEST_SHARE = 0.1
# How much the first guess counts beside one kind of steps that agrees with it.
_PRIOR_WEIGHT = 0.01
_NUM_WARM_UP_STEPS = 8
_MAX_RATIO = 8.0
_MIN_MS_PER_TOKEN = 1e-5
_MIN_MS_PER_PAIR = 1e-12
_Features = tuple[float, float, float, float]
_Kind = tuple[int, int, int]


class _KindOfStep:
    """The average of the steps of one kind, as it counts in the fit."""

    __slots__ = ("deviation_ms", "features", "num_seen", "step_ms", "weight")

    def __init__(self) -> None:
        self.features: _Features = (0.0, 0.0, 0.0, 0.0)
        self.step_ms = 0.0
        self.deviation_ms = 0.0
        self.num_seen = 0
        self.weight = 0.0

    def add(self, features: _Features, step_ms: float) -> None:
        """Takes in a step; one that was held up by something else moves the average little."""
        self.num_seen += 1
        share = max(1 / self.num_seen, _NEWEST_SHARE)
        error_ms = step_ms - self.step_ms
        if self.num_seen > _NUM_WARM_UP_STEPS:
            limit_ms = max(4 * self.deviation_ms, 0.25 * self.step_ms)
            self.deviation_ms += share * (min(abs(error_ms), 2 * limit_ms) - self.deviation_ms)
            error_ms = min(max(error_ms, -limit_ms), limit_ms)
        elif self.num_seen > 1:
            self.deviation_ms += share * (abs(error_ms) - self.deviation_ms)
        self.step_ms += share * error_ms
        a, b, c, d = self.features
        self.features = (
            a + share * (features[0] - a),
            b + share * (features[1] - b),
            c + share * (features[2] - c),
            d + share * (features[3] - d),
        )
        self.weight = 1 / (self.step_ms * self.step_ms)


class StepTimeModel:
    """Predicts milliseconds."""

    def __init__(
        self,
        base_ms: float = 8.0,
        ms_per_token: float = 0.1,
        ms_per_kv_token: float = 0.0005,
        ms_per_pair: float = 0.0001,
    ) -> None:
        prior = (base_ms, ms_per_token, ms_per_kv_token, ms_per_pair)
        self._costs = list(prior)
        # Normal equations of the fit; the first guess is in them for good.
        self._gram = [
            [_PRIOR_WEIGHT / (cost * cost) if i == j else 0.0 for j in range(_NUM_COSTS)]
            for i, cost in enumerate(prior)
        ]
        self._moments = [_PRIOR_WEIGHT / cost for cost in prior]
        self._kinds: OrderedDict[_Kind, _KindOfStep] = OrderedDict()
        self.num_observations = 0

    @property
    def base_ms(self) -> float:
        """a: what a step costs before the first token."""
        return self._costs[0]

    @property
    def ms_per_token(self) -> float:
        """b: what one more token costs."""
        return max(self._costs[1], _MIN_MS_PER_TOKEN)

    @property
    def ms_per_kv_token(self) -> float:
        """c: what one more token of context costs a row that decodes."""
        return self._costs[2]

    @property
    def ms_per_pair(self) -> float:
        """d: what one more token of context costs one token of a chunk."""
        return max(self._costs[3], _MIN_MS_PER_PAIR)

    def predict_ms(self, num_tokens: int, kv_tokens: int, num_pairs: int = 0) -> float:
        """The step's expected time."""
        return (
            self.base_ms
            + self.ms_per_token * num_tokens
            + self.ms_per_kv_token * kv_tokens
            + self.ms_per_pair * num_pairs
        )

    def chunk_ms(self, num_tokens: int, num_before: int) -> float:
        """What a chunk of a prompt, after `num_before` of its tokens, adds to a step."""
        num_pairs = chunk_pairs(num_tokens, num_before)
        return self.ms_per_token * num_tokens + self.ms_per_pair * num_pairs

    def chunk_within(self, left_ms: float, num_before: int) -> int:
        """The most tokens of a prompt, after `num_before`, that add at most `left_ms` to a step."""
        if left_ms <= 0:
            return 0
        # chunk_ms is half * n^2 + linear * n.
        half = self.ms_per_pair / 2
        linear = self.ms_per_token + self.ms_per_pair * num_before + half
        return int(2 * left_ms / (linear + math.sqrt(linear * linear + 4 * half * left_ms)))

    def observe(
        self, num_tokens: int, kv_tokens: int, step_ms: float, *, num_pairs: int = 0
    ) -> None:
        """Learns from one finished step."""
        self.num_observations += 1
        if self.num_observations > _NUM_WARM_UP_STEPS:
            predicted_ms = max(self.predict_ms(num_tokens, kv_tokens, num_pairs), 1e-3)
            step_ms = min(max(step_ms, predicted_ms / _MAX_RATIO), predicted_ms * _MAX_RATIO)
        kind = self._kind(num_tokens, kv_tokens, num_pairs)
        self._count(kind, -kind.weight)
        kind.add((1.0, float(num_tokens), float(kv_tokens), float(num_pairs)), max(step_ms, 1e-3))
        self._count(kind, kind.weight)
        self._solve()

    def _kind(self, num_tokens: int, kv_tokens: int, num_pairs: int) -> _KindOfStep:
        """The steps that are about as large as this one; those met least lately are forgotten."""
        key = (
            num_tokens.bit_length(),
            (kv_tokens // _SMALL_KV_TOKENS).bit_length(),
            (num_pairs // _SMALL_PAIRS).bit_length(),
        )
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= _MAX_KINDS:
                _, oldest = self._kinds.popitem(last=False)
                self._count(oldest, -oldest.weight)
            kind = self._kinds[key] = _KindOfStep()
        else:
            self._kinds.move_to_end(key)
        return kind

    def _count(self, kind: _KindOfStep, weight: float) -> None:
        """Adds a kind to the normal equations, or takes it out with its weight negated."""
        features = kind.features
        for i, row in enumerate(self._gram):
            weighted = weight * features[i]
            self._moments[i] += weighted * kind.step_ms
            for j in range(_NUM_COSTS):
                row[j] += weighted * features[j]

    def _solve(self) -> None:
        """Coordinate descent, which keeps every cost at 0 or above, from the last solution on."""
        costs = self._costs
        for _ in range(_NUM_SWEEPS):
            for i, row in enumerate(self._gram):
                others = sum(map(float.__mul__, row, costs)) - row[i] * costs[i]
                costs[i] = max(0.0, (self._moments[i] - others) / row[i])


def chunk_pairs(num_tokens: int, num_before: int) -> int:
    """Pairs of a chunk's tokens, each with itself and every token before it."""
    return num_tokens * num_before + num_tokens * (num_tokens + 1) // 2
