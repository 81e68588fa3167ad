"""Keeping special tokens out of reach of user text.

At load every special string of the tokenizer ("<|im_end|>") is renamed to one that nobody can
guess, in the added tokens and in the vocabulary. From then on no text can encode to a special id
by accident or intent: only what is renamed here, after rendering, is special. Special strings in
user text are ordinary text, encoded in place, in any tokenizer.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from millrace.core.errors import ConfigError

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

    def contains(self, part: str) -> str | None:
        """A special or control string that has `part` inside it, where there is one."""
        return next((string for string in self._strings if part in string), None)

    def _placeholder(self, match: re.Match[str]) -> str:
        return f"{_OPEN}{self._nonce}:{self._numbers[match[0]]}{_CLOSE}"

    def _reveal(self, match: re.Match[str]) -> str:
        return self._strings[int(match[1])]

    def _rename(self, match: re.Match[str]) -> str:
        return self.renamed(match[0])


def guarded_description(description: Mapping[str, Any], guard: Guard) -> dict[str, Any]:
    """A tokenizer.json with its special strings renamed; ids stay. Raises ConfigError if broken."""
    try:
        model = dict(description["model"])
        vocab = model["vocab"]
        if isinstance(vocab, Mapping):
            model["vocab"] = {guard.renamed(token): number for token, number in vocab.items()}
        else:
            model["vocab"] = [[guard.renamed(token), score] for token, score in vocab]
        if model.get("unk_token"):
            model["unk_token"] = guard.renamed(model["unk_token"])
        if model.get("merges"):
            model["merges"] = _merges_without(guard, model["merges"])
        added = [
            {**token, "content": guard.renamed(token["content"])}
            for token in description["added_tokens"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"tokenizer.json cannot be read: {error!r}") from error
    return {**description, "model": model, "added_tokens": added}


def _merges_without(guard: Guard, merges: list[Any]) -> list[list[str]]:
    """The merges that neither use nor build a renamed string."""
    renamed = guard.special | guard.control
    pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in merges]
    return [
        [left, right]
        for left, right in pairs
        if left + right not in renamed and left not in renamed and right not in renamed
    ]
