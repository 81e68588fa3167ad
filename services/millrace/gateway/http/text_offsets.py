"""Where each token of an output begins in the text that was shown, as `text_offset` tells.

Tokens are bytes, a text is characters, and the two do not simply add up: a character may come in
several tokens, bytes that are none show as U+FFFD each or some together, special tokens show
nothing, and a stop string cuts the text. So tokens are laid along the text that was really shown: a
token begins at the character that holds its first byte, or where it stands if it shows nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from .broken_bytes import REPLACEMENT, REPLACEMENT_BYTES, bytes_of_run, is_text, replaced


@dataclass(frozen=True, slots=True)
class _Laid:
    """Characters that a token covers wholly, and bytes of the next one.

    `broken_at`: from this byte of the token on the text shows U+FFFD.
    """

    num_characters: int
    num_covered: int
    broken_at: int | None = None


class TextOffsets:
    """Takes text and tokens as they come, and tells offsets, in order, as they become certain.

    They depend on the whole text and the tokens, not on the pieces in which these come.
    """

    def __init__(self) -> None:
        # The first character with bytes that no token has covered: its index, the text from there
        # on, and how many of its bytes are covered.
        self._position = 0
        self._text = ""
        self._num_covered = 0
        self._waiting: deque[bytes] = deque()
        self._is_told = False  # the offset of the first one that waits

    def feed(self, text: str, tokens: Iterable[bytes], *, is_final: bool = False) -> list[int]:
        """The offsets that became certain; at the end those of all tokens are."""
        self._text += text
        self._waiting.extend(tokens)
        offsets: list[int] = []
        while self._waiting:
            if not self._is_told:
                offsets.append(self._position)
                self._is_told = True
            inside = self._lay_first(is_final)
            if inside is None:
                break
            offsets += inside
        if not self._waiting and self._text:
            # Tokens that decode to something else than their bytes: go on behind the text.
            self._advance(len(self._text), 0)
        return offsets

    def _lay_first(self, is_final: bool) -> list[int] | None:
        """Lays the first token, or the run of broken bytes that begins in it, along the text.

        The offsets of the further tokens that begin in the run; None if more has to come first.
        """
        laid = self._match(self._waiting[0])
        if laid is None and not is_final:
            return None
        if laid is None:
            laid = _Laid(len(self._text), 0)
        if laid.broken_at is not None:
            return self._lay_run(laid.num_characters, laid.broken_at, is_final)
        self._drop(1)
        self._advance(laid.num_characters, laid.num_covered)
        return []

    def _match(self, token: bytes) -> _Laid | None:
        """How the token lies along the text; None if the text ends inside of it."""
        shows_nothing = _Laid(0, self._num_covered)
        number = 1 if self._loses_its_space(token) else 0
        index, covered = 0, self._num_covered
        while number < len(token):
            if index == len(self._text):
                return None
            character = self._text[index].encode()
            is_replaced = character == REPLACEMENT_BYTES and not covered
            if is_replaced and not token.startswith(character, number):
                return shows_nothing if is_text(token) else _Laid(index, 0, number)
            if token[number] != character[covered]:
                return shows_nothing
            number, covered = number + 1, covered + 1
            if covered == len(character):
                index, covered = index + 1, 0
        return _Laid(index, covered)

    def _loses_its_space(self, token: bytes) -> bool:
        """True for a word whose space is not shown: at the start of a text some drop it."""
        return token[:1] == b" " and self._text[:1] not in ("", " ") and not self._num_covered

    def _lay_run(self, start: int, broken_at: int, is_final: bool) -> list[int] | None:
        """As `_lay_first`, for bytes that the text shows as a run of U+FFFD."""
        text = self._text[start:]
        behind = text.lstrip(REPLACEMENT)
        if not behind and not is_final:
            return None
        run = bytes_of_run(self._waiting, broken_at, behind, is_final=is_final)
        if run is None:
            return None
        num_shown = len(text) - len(behind)
        shown_as = replaced(b"".join(run.parts), num_shown, behind[:1], is_whole=run.is_whole)
        if shown_as is None:
            return None
        offsets, end = [], len(run.parts[0])
        for part in run.parts[1:]:
            if end >= len(shown_as):
                break
            offsets.append(self._position + start + shown_as[end])
            end += len(part)
        self._drop(len(offsets) + 1, num_bytes_left=end - len(shown_as))
        self._advance(start + num_shown, 0)
        return offsets

    def _drop(self, num_tokens: int, *, num_bytes_left: int = 0) -> None:
        """Takes tokens from those that wait, but for the last bytes of the last one."""
        for _ in range(num_tokens):
            token = self._waiting.popleft()
        if num_bytes_left:
            self._waiting.appendleft(token[-num_bytes_left:])
        self._is_told = bool(num_bytes_left)

    def _advance(self, num_characters: int, num_covered: int) -> None:
        self._position += num_characters
        self._text = self._text[num_characters:]
        self._num_covered = num_covered
