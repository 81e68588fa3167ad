"""One request that a load will send."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt, how many tokens to generate, and when to send it: seconds after the start."""

    prompt: str
    num_output_tokens: int
    at_s: float = 0.0
