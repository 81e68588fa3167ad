"""How many prompt tokens one step may take in."""

from __future__ import annotations

from .policy import SchedulerPolicy
from .step_time import StepTimeModel

CHUNK_MULTIPLE = 32


class TokenBudget:
    """Prefill tokens left in a step: bounded by tokens, and by time while sequences decode.

    Chunks are multiples of 32, the row height of the matrix kernels, unless they end a prompt. The
    first chunk of a step has at least that many, so a prompt advances however slow the machine is.
    A token costs the more the longer its prompt is already, so late chunks are shorter.
    """

    def __init__(
        self, num_tokens: int, model: StepTimeModel | None = None, left_ms: float = 0.0
    ) -> None:
        self.num_left = num_tokens
        self._model = model
        self._left_ms = left_ms
        self._is_first = True

    @classmethod
    def for_step(
        cls,
        policy: SchedulerPolicy,
        model: StepTimeModel,
        num_decode_rows: int,
        kv_tokens: int,
        num_waiting: int = 0,
    ) -> TokenBudget:
        """The budget of a step that decodes `num_decode_rows` rows with `kv_tokens` of context.

        `num_waiting` sequences have no token yet. The more they are beside those that decode, the
        longer a step may take: up to twice the target, or rows would stay empty while many wait.
        """
        num_tokens = policy.max_num_batched_tokens - num_decode_rows
        if not num_decode_rows:
            return cls(num_tokens)
        decode_ms = model.predict_ms(num_decode_rows, kv_tokens)
        pressure = min(1.0, num_waiting / num_decode_rows)
        target_ms = policy.target_itl_ms * (1 + pressure)
        limit_ms = max(target_ms, policy.max_itl_stretch * decode_ms)
        return cls(num_tokens, model, limit_ms - decode_ms)

    def take(self, num_wanted: int, num_before: int = 0) -> int:
        """The next chunk of a prompt with `num_wanted` tokens to go after `num_before`, or 0."""
        num_tokens = min(num_wanted, self.num_left)
        if self._model is not None:
            within = self._model.chunk_within(self._left_ms, num_before)
            least = CHUNK_MULTIPLE if self._is_first else 0
            num_tokens = min(num_tokens, max(within, least))
        if num_tokens < num_wanted:
            num_tokens -= num_tokens % CHUNK_MULTIPLE
        self.num_left -= num_tokens
        if self._model is not None:
            self._left_ms -= self._model.chunk_ms(num_tokens, num_before)
        self._is_first = False
        return num_tokens
