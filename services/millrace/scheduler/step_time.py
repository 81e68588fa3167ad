"""How long a step will take, learnt while serving.

Recursive least squares with forgetting for
    step_ms = a + b * num_tokens + c * kv_tokens + d * num_pairs,
where num_tokens is the flattened batch, kv_tokens the sum of the context lengths of the rows that
decode, and num_pairs counts each token of a chunk with every token before it. Features are scaled
so that one prior covariance fits all four; each variance is bounded, because steady decoding
excites only one direction and plain forgetting would let the others grow without limit.
"""

from __future__ import annotations

import math

_TOKENS_SCALE = 1 / 64
_KV_SCALE = 1 / 4096
_PAIRS_SCALE = 1 / 32768
_NUM_COSTS = 4
_FORGETTING = 0.99
_INFLATION = _FORGETTING**-0.5
_PRIOR_VARIANCE = (100.0, 100.0, 25.0, 100.0)
_MAX_VARIANCE = 400.0
_NUM_WARM_UP_STEPS = 8
_MAX_RATIO = 8.0
_MIN_MS_PER_TOKEN = 1e-5
_MIN_MS_PER_PAIR = 1e-12


class StepTimeModel:
    """Predicts milliseconds; `observe` is robust to a step that was held up by something else."""

    def __init__(
        self,
        base_ms: float = 8.0,
        ms_per_token: float = 0.1,
        ms_per_kv_token: float = 0.0005,
        ms_per_pair: float = 0.0001,
    ) -> None:
        self._theta = [
            base_ms,
            ms_per_token / _TOKENS_SCALE,
            ms_per_kv_token / _KV_SCALE,
            ms_per_pair / _PAIRS_SCALE,
        ]
        self._covariance = [
            [variance if i == j else 0.0 for j in range(_NUM_COSTS)]
            for i, variance in enumerate(_PRIOR_VARIANCE)
        ]
        self._deviation_ms = 0.0
        self.num_observations = 0

    @property
    def base_ms(self) -> float:
        """a: what a step costs before the first token."""
        return max(self._theta[0], 0.0)

    @property
    def ms_per_token(self) -> float:
        """b: what one more token costs."""
        return max(self._theta[1] * _TOKENS_SCALE, _MIN_MS_PER_TOKEN)

    @property
    def ms_per_kv_token(self) -> float:
        """c: what one more token of context costs a row that decodes."""
        return max(self._theta[2] * _KV_SCALE, 0.0)

    @property
    def ms_per_pair(self) -> float:
        """d: what one more token of context costs one token of a chunk."""
        return max(self._theta[3] * _PAIRS_SCALE, _MIN_MS_PER_PAIR)

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
        predicted_ms = max(self.predict_ms(num_tokens, kv_tokens, num_pairs), 1e-3)
        step_ms = min(max(step_ms, predicted_ms / _MAX_RATIO), predicted_ms * _MAX_RATIO)
        error_ms = step_ms - predicted_ms
        limit_ms = max(4 * self._deviation_ms, 0.25 * predicted_ms)
        self._deviation_ms += 0.1 * (min(abs(error_ms), 2 * limit_ms) - self._deviation_ms)
        if self.num_observations >= _NUM_WARM_UP_STEPS:
            error_ms = min(max(error_ms, -limit_ms), limit_ms)
        self.num_observations += 1
        features = (
            1.0,
            num_tokens * _TOKENS_SCALE,
            kv_tokens * _KV_SCALE,
            num_pairs * _PAIRS_SCALE,
        )
        self._update(features, error_ms)

    def _update(self, x: tuple[float, ...], error_ms: float) -> None:
        p, costs = self._covariance, range(_NUM_COSTS)
        px = [sum(map(float.__mul__, row, x)) for row in p]
        scale = _FORGETTING + sum(map(float.__mul__, x, px))
        for i in costs:
            gain = px[i] / scale
            self._theta[i] += gain * error_ms
            for j in costs:
                p[i][j] -= gain * px[j]
        # A cost is forgotten only in steps that tell of it.
        forget = [_INFLATION if x[i] and p[i][i] < _MAX_VARIANCE else 1.0 for i in costs]
        for i in costs:
            for j in costs:
                p[i][j] *= forget[i] * forget[j]


def chunk_pairs(num_tokens: int, num_before: int) -> int:
    """Pairs of a chunk's tokens, each with itself and every token before it."""
    return num_tokens * num_before + num_tokens * (num_tokens + 1) // 2
