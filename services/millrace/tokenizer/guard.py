"""Keeping special tokens out of reach of user text.

At load every special string of the tokenizer ("<|im_end|>") is renamed to one that nobody can
guess, in the added tokens and in the vocabulary. From then on no text can encode to a special id
by accident or intent: only what is renamed here, after rendering, is special. Special strings in
user text are ordinary text, encoded in place, in any tokenizer.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from typing import Any

from .match import match_any

# Placeholders stand in user text while the template runs. Private-use characters around digits
# survive what templates do to text: trim, upper, lower, split, tojson.
_OPEN, _CLOSE = "\ue000", "\ue001"


class Guard:
    """special: strings of special tokens. control: other added tokens that the template writes.

    Control tokens are ordinary words of plain prompts and of earlier answers, as transformers has
    it, but not of what users and tools say inside a conversation.
    """

    def __init__(self, special: Iterable[str], control: Iterable[str] = ()) -> None:
        self._nonce = f"{secrets.randbelow(10**24):024d}"
        self.special = frozenset(special)
        self.control = frozenset(control) - self.special
        self._strings = sorted(self.special | self.control)
        self._numbers = {string: number for number, string in enumerate(self._strings)}
        self._special_re = match_any(self.special)
        self._control_re = match_any(self.control)
        self._any_re = match_any(self._strings)
        self._placeholder_re = re.compile(f"{_OPEN}{self._nonce}:([0-9]+){_CLOSE}")

    def renamed(self, string: str) -> str:
        """The name of a special or control string inside the guarded tokenizer; others stay."""
        return f"{self._nonce}{string}{self._nonce}" if string in self._numbers else string

    def original(self, string: str) -> str:
        """Undoes `renamed`, also inside a longer text."""
        return string.replace(self._nonce, "")

    def hide(self, text: str, *, trusted: bool) -> str:
        """User text as the template may see it; `trusted` text keeps its control tokens."""
        pattern = self._special_re if trusted else self._any_re
        return pattern.sub(self._placeholder, text)

    def seal(self, rendered: str) -> str:
        """A rendered conversation as the guarded tokenizer takes it: what the template wrote is
        special, what was hidden is text again."""
        sealed = self._any_re.sub(self._rename, rendered)
        return self._placeholder_re.sub(self._reveal, sealed)

    def seal_prompt(self, text: str) -> str:
        """A plain prompt as the guarded tokenizer takes it."""
        return self._control_re.sub(self._rename, text) if self.control else text

    def _placeholder(self, match: re.Match[str]) -> str:
        return f"{_OPEN}{self._nonce}:{self._numbers[match[0]]}{_CLOSE}"

    def _reveal(self, match: re.Match[str]) -> str:
        return self._strings[int(match[1])]

    def _rename(self, match: re.Match[str]) -> str:
        return self.renamed(match[0])


def guard_description(description: dict[str, Any], guard: Guard) -> None:
    """Renames the special strings of a tokenizer.json in place; ids stay."""
    model = description["model"]
    model["vocab"] = _renamed_vocab(guard, model["vocab"])
    if model.get("unk_token"):
        model["unk_token"] = guard.renamed(model["unk_token"])
    if model.get("merges"):
        model["merges"] = _merges_without(guard, model["merges"])
    for token in description["added_tokens"]:
        token["content"] = guard.renamed(token["content"])


def _renamed_vocab(guard: Guard, vocab: Any) -> Any:
    if not isinstance(vocab, dict):
        return [[guard.renamed(token), score] for token, score in vocab]
    for token in guard.special | guard.control:
        if token in vocab:
            vocab[guard.renamed(token)] = vocab.pop(token)
    return vocab


def _merges_without(guard: Guard, merges: list[Any]) -> list[Any]:
    """The merges that neither use nor build a renamed string."""
    renamed = guard.special | guard.control
    return [pair for pair in merges if renamed.isdisjoint(_parts(pair))]


def _parts(pair: Any) -> tuple[str, str, str]:
    left, right = pair.split(" ", 1) if isinstance(pair, str) else pair
    return left, right, left + right
