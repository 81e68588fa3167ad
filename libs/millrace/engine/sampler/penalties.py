"""What changes logits before sampling: penalties, logit bias, and stop ids before `min_tokens`.

Order and formulas follow transformers and vLLM: the repetition penalty divides positive and
multiplies other logits of every token in prompt or output; frequency and presence penalties
subtract from tokens of the output; then the bias is added; a stop id that may not come yet gets
-inf last.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from millrace.core.sampling import SamplingSpec

from .truncation import Ids, Logits


def has_pending_stops(
    spec: SamplingSpec, num_output_tokens: int, stop_token_ids: Sequence[int]
) -> bool:
    """True where the output is too short for a stop id."""
    return num_output_tokens < spec.min_tokens and len(stop_token_ids) > 0


def apply_penalties(
    logits: Logits, spec: SamplingSpec, token_ids: Sequence[int], num_prompt_tokens: int
) -> None:
    """Repetition, frequency and presence penalties in place on `logits` [V], in float32.

    `token_ids` is prompt and output; ids outside the vocabulary are passed over.
    """
    if spec.repetition_penalty != 1.0:
        seen = _inside(token_ids, len(logits))
        penalty = np.float32(spec.repetition_penalty)
        values = logits[seen]
        logits[seen] = np.where(values > 0, values / penalty, values * penalty)
    if spec.frequency_penalty == 0.0 and spec.presence_penalty == 0.0:
        return
    output, counts = np.unique(
        _inside(token_ids[num_prompt_tokens:], len(logits)), return_counts=True
    )
    logits[output] -= np.float32(spec.frequency_penalty) * counts.astype(np.float32)
    logits[output] -= np.float32(spec.presence_penalty)


def apply_bias(logits: Logits, logit_bias: Sequence[tuple[int, float]]) -> None:
    """Add each bias in place on `logits` [V]; biases of one id add up."""
    for token_id, bias in logit_bias:
        if 0 <= token_id < len(logits):
            logits[token_id] += np.float32(bias)


def mask_stops(logits: Logits, stop_token_ids: Sequence[int]) -> None:
    """Make every stop id impossible, in place on `logits` [V]."""
    logits[_inside(stop_token_ids, len(logits))] = -np.inf


def _inside(token_ids: Sequence[int], vocab_size: int) -> Ids:
    """The ids that exist; a wrong one may neither fail the step nor wrap round to another token."""
    ids = np.array(token_ids, dtype=np.int64)
    return ids[(ids >= 0) & (ids < vocab_size)]
