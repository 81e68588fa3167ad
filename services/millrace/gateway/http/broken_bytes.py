"""Bytes of tokens that are no characters, and the U+FFFD that a text shows in their place.

Two rules are in use. UTF-8 decoders show one for the longest beginning of a character (Unicode
3.9, "substitution of maximal subparts"). Tokenizers with tokens for single bytes ("<0xE4>") decode
a run of these together, and show one for each unless the whole run is valid.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
REPLACEMENT_BYTES = REPLACEMENT.encode()
# A run that fits no rule is given up after so many.
MAX_RUN_BYTES = 256


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes that each token may add to a run; `is_whole`: the run is all of them, not a part."""

    parts: list[bytes]
    is_whole: bool


def bytes_of_run(
    tokens: Iterable[bytes], broken_at: int, behind: str, *, is_final: bool
) -> Run | None:
    """What belongs to the run that begins at byte `broken_at` of the first token.

    `behind` is the text behind the run. None if more of it has to come first.
    """
    parts: list[bytes] = []
    for token in tokens:
        if not parts:
            parts.append(token[broken_at:])
        elif not is_text(token):
            parts.append(token)
        elif behind.startswith(shown := token.decode()):
            return Run(parts, is_whole=True)
        elif shown.startswith(behind):
            return Run(parts, is_whole=True) if is_final else None
        else:
            parts.append(b"")  # a special token, which shows nothing
    return Run(parts, is_whole=is_final)


def replaced(
    data: bytes, num_shown: int, next_character: str, *, is_whole: bool
) -> list[int] | None:
    """Which of `num_shown` U+FFFD each byte of a run shows as, the run being a beginning of `data`.

    What follows it begins with `next_character`. None if more bytes have to come first.
    """
    behind = next_character.encode()
    for length in range(1, min(len(data), MAX_RUN_BYTES) + 1):
        is_end = is_whole and length == len(data)
        if not is_end and not (behind and data.startswith(behind, length)):
            continue
        if length == num_shown:
            return list(range(length))
        together = list(_replaced_together(data[:length]))
        if together[-1] == num_shown - 1:
            return together
    if is_whole or len(data) >= MAX_RUN_BYTES:
        return [min(index, num_shown - 1) for index in range(len(data))]
    return None


def is_text(token: bytes) -> bool:
    """True for whole characters, which are never replaced.

    Not for a single byte: a run that is decoded together takes those beside a wrong one with it.
    """
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return len(token) > 1


def _replaced_together(data: bytes) -> Iterator[int]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    num_done = 0
    for byte in data:
        num_done += len(decoder.decode(bytes([byte])))
        yield num_done if decoder.getstate()[0] else num_done - 1
