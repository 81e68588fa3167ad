"""Special tokens of the models, which texts never show: what the tokenizer says, asked once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from millrace.core.model import ModelInfo

from .ports import Tokenizer


class SpecialTokens:
    """ids: of the special tokens that a model can generate, by their strings."""

    def __init__(self, ids: Mapping[str, int] | None = None) -> None:
        self.by_string = dict(ids or {})
        self.ids = frozenset(self.by_string.values())
        self._lengths = sorted({len(string) for string in self.by_string}, reverse=True)

    def split(self, text: str) -> Iterator[str]:
        """The text in pieces, every special string (the longest that begins there) and every other
        character one of its own."""
        start = 0
        while start < len(text):
            ends = (start + length for length in self._lengths)
            special = (text[start:end] for end in ends if text[start:end] in self.by_string)
            piece = next(special, text[start])
            yield piece
            start += len(piece)


class SpecialTokensOfModels:
    """Asks the tokenizer once for every revision of a model."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, tuple[str, SpecialTokens]] = {}

    async def of(self, info: ModelInfo) -> SpecialTokens:
        """Raises `Unavailable` if no tokenizer answers."""
        revision, special = self._known.get(info.name, ("", None))
        if special is None or revision != info.revision:
            ids = await self._tokenizer.special_ids(info.name)
            inside = {string: number for string, number in ids.items() if number < info.vocab_size}
            special = SpecialTokens(inside)
            self._known[info.name] = (info.revision, special)
        return special
