"""The thirty prompts of the equality tests, and what transformers answers to them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Prompt:
    """A plain text, or messages for the chat template."""

    name: str
    max_tokens: int
    text: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    # False where our encoding differs from transformers' on purpose: special strings stay text.
    compare_encoding: bool = True


@dataclass(frozen=True)
class Reference:
    """What transformers `generate` gives in float32, greedily."""

    name: str
    max_tokens: int
    prompt_token_ids: list[int]
    output_token_ids: list[int]


def load_prompts() -> list[Prompt]:
    """All of them, in order."""
    return [_prompt(entry) for entry in json.loads((DATA / "prompts.json").read_text())]


def load_references() -> dict[str, Reference]:
    """By name, as `scripts/make_references.py` wrote them."""
    entries = json.loads((DATA / "references.json").read_text())["references"]
    return {entry["name"]: Reference(**entry) for entry in entries}


def _prompt(entry: dict[str, Any]) -> Prompt:
    turns = [tuple(turn) for turn in entry.get("turns", [])]
    if "system" in entry:
        turns.append(("system", entry["system"]))
    if "chat" in entry:
        turns.append(("user", entry["chat"]))
    text = entry.get("text", "") * entry.get("repeat", 1)
    if "numbered" in entry:
        text = "\n".join(
            f"Wheel {number} turns {number * 7 % 13} times an hour."
            for number in range(1, entry["numbered"] + 1)
        )
    return Prompt(
        name=entry["name"],
        max_tokens=entry["max_tokens"],
        text=text,
        messages=[{"role": role, "content": content} for role, content in turns],
        compare_encoding=entry.get("compare_encoding", True),
    )
