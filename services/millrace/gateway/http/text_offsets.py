"""Where each token of an output begins in the text that was shown, as `text_offset` tells.

Tokens are bytes, a text is characters, and the two do not simply add up: a character may come in
several tokens, bytes that are none show as U+FFFD each or some together, special tokens show
nothing, and a stop string cuts the text. So tokens are laid along the text that was really shown: a
token begins at the character that holds its first byte, or where it stands if it shows nothing.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A run of broken bytes that fits no rule is given up after so many.
MAX_RUN_BYTES = 256


@dataclass(frozen=True, slots=True)
class _Laid:
    """Characters and bytes of the next one that a token covers; `broken_at`: from this byte of the
    token on, the text shows U+FFFD."""

    num_characters: int
    num_bytes: int
    broken_at: int | None = None


class TextOffsets:
    """Takes text and tokens as they come, and tells offsets, in order, as they become certain.

    They depend on the whole text and the tokens, not on the pieces in which these come.
    """

    def __init__(self) -> None:
        # Of the first character with bytes that no token has covered yet: its index, the text from
        # there on, and its covered bytes.
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
        token = self._waiting[0]
        laid = self._match(token)
        if laid is None and not is_final:
            return None
        if laid is None:
            self._drop_first()
            self._advance(len(self._text), 0)
            return []
        if laid.broken_at is not None:
            return self._lay_run(laid.num_characters, laid.broken_at, is_final)
        self._drop_first()
        self._advance(laid.num_characters, laid.num_bytes)
        return []

    def _match(self, token: bytes) -> _Laid | None:
        """How the token lies along the text; None where the text ends inside of it."""
        index, covered = 0, self._num_covered
        if self._loses_its_space(token):
            token = token[1:]
        for number, byte in enumerate(token):
            if index == len(self._text):
                return None
            character = self._text[index].encode()
            if byte != character[covered]:
                is_broken = self._text[index] == REPLACEMENT and not covered
                if is_broken and (number or not _is_text(token)):
                    return _Laid(index, 0, number)
                return _Laid(0, self._num_covered)  # it shows nothing
            covered += 1
            if covered == len(character):
                index, covered = index + 1, 0
        return _Laid(index, covered)

    def _loses_its_space(self, token: bytes) -> bool:
        """True for a word that begins the text, where some tokenizers drop its space."""
        return not self._position and token[:1] == b" " and self._text[:1] not in ("", " ")

    def _lay_run(self, start: int, broken_at: int, is_final: bool) -> list[int] | None:
        """As `_lay_first`, for bytes that the text shows as a run of U+FFFD."""
        text = self._text[start:]
        num_shown = len(text) - len(text.lstrip(REPLACEMENT))
        if num_shown == len(text) and not is_final:
            return None
        data = b"".join(self._waiting)[broken_at:]
        groups = _groups_of_run(data, num_shown, text[num_shown : num_shown + 1], is_final)
        if groups is None:
            return None
        position = self._position + start
        offsets, begin = [], len(self._waiting[0]) - broken_at
        while begin < len(groups) and len(self._waiting) > 1:
            offsets.append(position + groups[begin])
            self._waiting.popleft()
            begin += len(self._waiting[0])
        # What is left of the last one begins behind the run.
        self._waiting[0] = self._waiting[0][len(self._waiting[0]) - (begin - len(groups)) :]
        if begin <= len(groups):
            self._drop_first()
        self._advance(start + num_shown, 0)
        return offsets

    def _drop_first(self) -> None:
        self._waiting.popleft()
        self._is_told = False

    def _advance(self, num_characters: int, num_covered: int) -> None:
        self._position += num_characters
        self._text = self._text[num_characters:]
        self._num_covered = num_covered


def _groups_of_run(
    data: bytes, num_shown: int, next_character: str, is_final: bool
) -> list[int] | None:
    """Which of `num_shown` U+FFFD each byte of a broken run shows as, the run being a beginning of
    `data`; None if more bytes have to come first.

    What follows the run begins with `next_character`, which is empty at the end of the text.
    """
    behind = next_character.encode()
    for length in range(1, min(len(data), MAX_RUN_BYTES) + 1):
        if not data[length:].startswith(behind) or not (behind or length == len(data)):
            continue
        if length == num_shown:
            return list(range(length))
        groups = list(_replaced_together(data[:length]))
        if groups[-1] == num_shown - 1:
            return groups
    if len(data) < MAX_RUN_BYTES and not is_final:
        return None
    return [min(index, num_shown - 1) for index in range(len(data))]


def _replaced_together(data: bytes) -> Iterator[int]:
    """The index of the U+FFFD of each byte where the longest beginnings of characters count as one.

    As Unicode recommends (chapter 3.9, substitution of maximal subparts), and as UTF-8 decoders do.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    num_done = 0
    for byte in data:
        num_done += len(decoder.decode(bytes([byte])))
        yield num_done if decoder.getstate()[0] else num_done - 1


def _is_text(token: bytes) -> bool:
    """True for whole characters, of which a text never shows U+FFFD; one byte may stand for more:
    where byte tokens are decoded together, one that is wrong spoils those beside it."""
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return len(token) > 1
