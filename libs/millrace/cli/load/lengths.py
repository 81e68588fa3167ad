"""How long prompts and answers are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens: prompts from `min_input` to `max_input`, evenly spread, and answers of `output`."""

    min_input: int
    max_input: int
    output: int

    def __str__(self) -> str:
        spread = "" if self.min_input == self.max_input else f"-{self.max_input}"
        return f"{self.min_input}{spread}+{self.output}"
