"""Log-probabilities under the model itself: of the raw logits, before penalties and temperature."""

from __future__ import annotations

import math

from millrace.core.tokens import TokenLogprobs

from .truncation import Logits, likeliest_tokens, mass


def token_logprobs(logits: Logits, token_id: int, num_top: int) -> TokenLogprobs:
    """Natural-log probabilities of `token_id` and of the `num_top` likeliest tokens.

    `logits` [V] in float32; sums are in float64. The top is in descending order, the lower id first
    where two tie. The highest logit must be finite.
    """
    peak = float(logits.max())
    log_total = peak + math.log(mass(logits, peak))
    top = likeliest_tokens(logits, num_top) if num_top > 0 else ()
    return TokenLogprobs(
        chosen=float(logits[token_id]) - log_total,
        top=tuple((int(i), float(logits[i]) - log_total) for i in top),
    )
