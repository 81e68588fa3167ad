"""How long a step will take, learnt while serving.

Recursive least squares with forgetting for step_ms = a + b * num_tokens + c * kv_tokens, where
num_tokens is the flattened batch and kv_tokens the sum of the context lengths that attention
reads. Features are scaled so that one prior covariance fits all three; the covariance is bounded,
because steady decoding excites only one direction and plain forgetting would let the others grow
without limit.
"""

from __future__ import annotations

_TOKENS_SCALE = 1 / 64
_KV_SCALE = 1 / 4096
_FORGETTING = 0.99
_PRIOR_VARIANCE = (100.0, 100.0, 25.0)
_MAX_VARIANCE = 400.0
_NUM_WARM_UP_STEPS = 8
_MAX_RATIO = 8.0
_MIN_MS_PER_TOKEN = 1e-5


class StepTimeModel:
    """Predicts milliseconds; `observe` is robust to a step that was held up by something else."""

    def __init__(
        self, base_ms: float = 8.0, ms_per_token: float = 0.1, ms_per_kv_token: float = 0.0005
    ) -> None:
        self._theta = [base_ms, ms_per_token / _TOKENS_SCALE, ms_per_kv_token / _KV_SCALE]
        self._covariance = [
            [variance if i == j else 0.0 for j in range(3)]
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
        """c: what one more token of context costs."""
        return max(self._theta[2] * _KV_SCALE, 0.0)

    def predict_ms(self, num_tokens: int, kv_tokens: int) -> float:
        """The step's expected time."""
        return self.base_ms + self.ms_per_token * num_tokens + self.ms_per_kv_token * kv_tokens

    def prefill_tokens_within(self, target_ms: float, num_decode_rows: int, kv_tokens: int) -> int:
        """How many prefill tokens may join the decode rows until the step takes `target_ms`."""
        slack_ms = target_ms - self.predict_ms(num_decode_rows, kv_tokens)
        return max(0, int(slack_ms / self.ms_per_token))

    def observe(self, num_tokens: int, kv_tokens: int, step_ms: float) -> None:
        """Learns from one finished step."""
        predicted_ms = max(self.predict_ms(num_tokens, kv_tokens), 1e-3)
        step_ms = min(max(step_ms, predicted_ms / _MAX_RATIO), predicted_ms * _MAX_RATIO)
        error_ms = step_ms - predicted_ms
        limit_ms = max(4 * self._deviation_ms, 0.25 * predicted_ms)
        self._deviation_ms += 0.1 * (min(abs(error_ms), 2 * limit_ms) - self._deviation_ms)
        if self.num_observations >= _NUM_WARM_UP_STEPS:
            error_ms = min(max(error_ms, -limit_ms), limit_ms)
        self.num_observations += 1
        self._update((1.0, num_tokens * _TOKENS_SCALE, kv_tokens * _KV_SCALE), error_ms)

    def _update(self, x: tuple[float, float, float], error_ms: float) -> None:
        p = self._covariance
        px = [row[0] * x[0] + row[1] * x[1] + row[2] * x[2] for row in p]
        scale = _FORGETTING + x[0] * px[0] + x[1] * px[1] + x[2] * px[2]
        for i in range(3):
            gain = px[i] / scale
            self._theta[i] += gain * error_ms
            for j in range(3):
                p[i][j] -= gain * px[j]
        if max(p[0][0], p[1][1], p[2][2]) < _MAX_VARIANCE:
            for i in range(3):
                for j in range(3):
                    p[i][j] /= _FORGETTING
