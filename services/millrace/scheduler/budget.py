"""How many prompt tokens one step may take in."""

from __future__ import annotations

from .policy import SchedulerPolicy
from .step_time import StepTimeModel

CHUNK_MULTIPLE = 32


class TokenBudget:
    """Prefill tokens left in a step: bounded by tokens, and by time while sequences decode.

    Chunks are multiples of 32, the row height of the matrix kernels, unless they end a prompt. At
    least one such chunk always fits, so a prompt advances however slow the machine is.
    """

    def __init__(self, num_tokens: int) -> None:
        self.num_left = num_tokens

    @classmethod
    def for_step(
        cls, policy: SchedulerPolicy, model: StepTimeModel, num_decode_rows: int, kv_tokens: int
    ) -> TokenBudget:
        """The budget of a step that decodes `num_decode_rows` rows with `kv_tokens` of context."""
        num_tokens = policy.max_num_batched_tokens - num_decode_rows
        if num_decode_rows:
            within = model.prefill_tokens_within(policy.target_itl_ms, num_decode_rows, kv_tokens)
            num_tokens = min(num_tokens, max(within, CHUNK_MULTIPLE))
        return cls(num_tokens)

    def take(self, num_wanted: int) -> int:
        """The next chunk of a prompt with `num_wanted` tokens to go; 0 where none fits."""
        num_tokens = num_wanted
        if num_wanted > self.num_left:
            num_tokens = self.num_left - self.num_left % CHUNK_MULTIPLE
        self.num_left -= num_tokens
        return num_tokens
