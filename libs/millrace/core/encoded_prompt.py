"""What a tokenizer makes of a prompt."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """token_ids: None if there are more of them than were asked for."""

    num_tokens: int
    token_ids: list[int] | None
