"""The `logprobs` object of POST /v1/completions: columns by token, alternatives by spelling."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from millrace.gateway.events import PositionLogprobs, TokenLogprob

from .replies import shown_logprob
from .text_offsets import TextOffsets


class CompletionLogprobs:
    """Of one choice: takes text and positions as they come, gives columns of what is certain."""

    def __init__(self) -> None:
        self._offsets = TextOffsets()
        self._waiting: deque[PositionLogprobs] = deque()

    def feed(
        self, text: str, positions: Iterable[PositionLogprobs], *, is_final: bool = False
    ) -> dict[str, Any] | None:
        """The columns of the next tokens; None if there are none yet."""
        new = tuple(positions)
        self._waiting.extend(new)
        tokens = [position.chosen.raw for position in new]
        offsets = self._offsets.feed(text, tokens, is_final=is_final)
        return _columns([self._waiting.popleft() for _ in offsets], offsets) if offsets else None


def completion_logprobs(text: str, positions: Iterable[PositionLogprobs]) -> dict[str, Any]:
    """The object of a whole choice."""
    whole = CompletionLogprobs().feed(text, positions, is_final=True)
    return _columns([], []) if whole is None else whole


def _columns(positions: list[PositionLogprobs], offsets: list[int]) -> dict[str, Any]:
    return {
        "tokens": [spelled(position.chosen) for position in positions],
        "token_logprobs": [shown_logprob(position.chosen.logprob) for position in positions],
        "top_logprobs": [_alternatives(position) for position in positions],
        "text_offset": offsets,
    }


def _alternatives(position: PositionLogprobs) -> Mapping[str, float]:
    """Log-probabilities of the likeliest tokens and of the chosen one, best first.

    The chosen token has its spelling; another one that is spelled as something before it goes by
    its id.
    """
    chosen, found = position.chosen, {}
    taken = {spelled(chosen)}
    entries = {entry.token_id: entry for entry in (*position.top, chosen)}
    for entry in sorted(entries.values(), key=lambda entry: -entry.logprob):
        name = spelled(entry)
        if entry.token_id != chosen.token_id and name in taken:
            name = f"token_id:{entry.token_id}"
        taken.add(name)
        found[name] = shown_logprob(entry.logprob)
    return found


def spelled(entry: TokenLogprob) -> str:
    """The token as text; a piece of a character as `bytes:\\xe4\\xbd`, as OpenAI's API has it."""
    try:
        return entry.raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in entry.raw)
