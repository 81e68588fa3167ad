"""Incremental decoding: text is shown once no later token can change it.

Over any split of a sequence's ids into calls the shown texts add up to what decoding them all at
once gives, special tokens left out; after a prompt, to what they add to the prompt's text. A row's
tail is bounded, whatever the ids.

Two kinds of tokenizers: where a token is a fixed string of bytes (byte-level BPE) only a split
UTF-8 character is ever held back, and decoding is a table. Elsewhere the tokenizer's own decoder is
run over the tail and the new ids, and the text of the tail is cut off again; held back are runs of
byte tokens ("<0xE4>"), which count as U+FFFD each unless the whole run is valid UTF-8.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import dropwhile
from typing import Protocol

from millrace.core.detokenize import DecodedRow, DecodeRow

# A longer run of byte tokens is shown character by character, as if it were known to be valid.
MAX_OPEN_BYTES = 64
# Ids held back because a decoder that joins bytes itself gave text ending in U+FFFD.
MAX_OPEN_IDS = 8

_REPLACEMENT = "\ufffd"


class RowDecoder(Protocol):
    """Decodes the rows of a frame and tells the bytes of single tokens; holds no state."""

    def decode_row(self, row: DecodeRow) -> DecodedRow:
        """The text that became certain with the row's new ids, and its next tail."""
        ...

    def piece(self, token_id: int, *, is_at_start: bool = False) -> bytes:
        """The bytes of one token in the middle of a text, or at its start; empty if there is no
        such token."""
        ...


class ByteRowDecoder:
    """For tokenizers whose every token is a fixed string of bytes.

    pieces: bytes by token id. special_ids: ids that are left out of texts. The table is never
    longer than twice the number of tokens, whatever the highest id.
    """

    def __init__(self, pieces: Mapping[int, bytes], special_ids: Iterable[int]) -> None:
        self._special = {number: pieces[number] for number in special_ids}
        size = min(max(pieces, default=-1) + 1, 2 * len(pieces))
        self._table = [
            b"" if number in self._special else pieces.get(number, b"") for number in range(size)
        ]
        self._beyond = {
            number: piece
            for number, piece in pieces.items()
            if number >= size and number not in self._special
        }

    def piece(self, token_id: int, *, is_at_start: bool = False) -> bytes:
        """See `RowDecoder.piece`."""
        return self._special.get(token_id) or self._bytes([token_id])

    def decode_row(self, row: DecodeRow) -> DecodedRow:
        """See `RowDecoder.decode_row`."""
        ids = (*row.tail_ids, *row.new_ids)
        data = self._bytes(ids)
        text, num_used = codecs.utf_8_decode(data, "replace", row.final)
        if row.num_tail_shown:
            shown = self._bytes(row.tail_ids[: row.num_tail_shown])
            text = text[len(codecs.utf_8_decode(shown, "replace", False)[0]) :]
        tail = self._last_ids(ids, len(data) - num_used)
        return DecodedRow(text, tail, len(tail))

    def _bytes(self, ids: Iterable[int]) -> bytes:
        table, beyond = self._table, self._beyond
        size = len(table)
        return b"".join(
            [table[number] if number < size else beyond.get(number, b"") for number in ids]
        )

    def _last_ids(self, ids: Sequence[int], num_bytes: int) -> tuple[int, ...]:
        """The fewest last ids that hold the last `num_bytes` (0 to 3) bytes."""
        tail: list[int] = []
        for token_id in reversed(ids):
            if num_bytes <= 0:
                break
            if piece := self._bytes([token_id]):
                tail.append(token_id)
                num_bytes -= len(piece)
        return tuple(reversed(tail))


class TextRowDecoder:
    """For every other tokenizer.

    decode: ids to text with the tokenizer's decoder, special tokens left out. byte_of: byte tokens
    to their byte. special_pieces: special tokens to their bytes. anchor: an ordinary token that
    stands before a text so that it is not taken for the first one. joins_bytes: the decoder puts
    bytes of several tokens together by itself.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        *,
        vocab_size: int,
        byte_of: dict[int, int],
        special_pieces: dict[int, bytes],
        anchor: int | None,
        joins_bytes: bool,
    ) -> None:
        self._decode = decode
        self._vocab_size = vocab_size
        self._byte_of = byte_of
        self._special_pieces = special_pieces
        self._anchor = [] if anchor is None else [anchor]
        self._joins_bytes = joins_bytes

    def piece(self, token_id: int, *, is_at_start: bool = False) -> bytes:
        """See `RowDecoder.piece`."""
        if token_id in self._special_pieces:
            return self._special_pieces[token_id]
        if token_id in self._byte_of:
            return bytes([self._byte_of[token_id]])
        if token_id >= self._vocab_size:
            return b""
        return self._text_after([] if is_at_start else self._anchor, [token_id]).encode()

    def decode_row(self, row: DecodeRow) -> DecodedRow:
        """See `RowDecoder.decode_row`."""
        shown = list(row.tail_ids[: row.num_tail_shown])
        held: Sequence[int] = row.tail_ids[row.num_tail_shown :]
        if row.is_after_prompt:
            shown, held = self._after_prompt(self._visible(row.tail_ids))
        items = self._visible((*held, *row.new_ids))
        texts: list[str] = []
        certain: list[int] = []
        run: list[int] = []
        is_broken = self._first_break(shown) is not None
        for token_id in items:
            if token_id not in self._byte_of:
                certain += (*run, token_id)
                run, is_broken = [], False
                continue
            run.append(token_id)
            is_broken = is_broken or self._first_break(run) is not None
            if is_broken:
                certain += run
                run = []
            elif len(run) == MAX_OPEN_BYTES:
                cut = self._num_complete(run)
                texts.append(self._text_after(shown, certain + run[:cut]))
                shown, certain, run = self._anchor, [], run[cut:]
        if row.final:
            certain += run
        text = self._text_after(shown, certain)
        if self._is_split(text, certain) and not row.final:
            return DecodedRow("".join(texts), (*shown, *certain, *run), len(shown))
        texts.append(text)
        if row.final:
            return DecodedRow("".join(texts), (), 0)
        shown = self._context(shown, certain)
        return DecodedRow("".join(texts), (*shown, *run), len(shown))

    def _visible(self, ids: Iterable[int]) -> list[int]:
        special, vocab_size = self._special_pieces, self._vocab_size
        return [number for number in ids if number not in special and number < vocab_size]

    def _text_after(self, shown: list[int], ids: list[int]) -> str:
        if not ids:
            return ""
        text = self._decode([*shown, *ids])
        return text[len(self._decode(shown)) :] if shown else text

    def _is_split(self, text: str, ids: list[int]) -> bool:
        return self._joins_bytes and text.endswith(_REPLACEMENT) and len(ids) <= MAX_OPEN_IDS

    def _context(self, shown: list[int], certain: list[int]) -> list[int]:
        """The fewest shown ids that later text depends on."""
        if not certain:
            return shown
        if certain[-1] not in self._byte_of:
            return certain[-1:]
        run = self._trailing_bytes([*shown, *certain])
        start = self._first_break(run)
        # What makes the run invalid stays, so that it stays invalid.
        return run if start is None else run[start[0] : start[1] + 1]

    def _after_prompt(self, ids: list[int]) -> tuple[list[int], list[int]]:
        """What the text after a prompt depends on, from the prompt's last ids: shown ids, and the
        bytes of a character that is still open."""
        run = self._trailing_bytes(ids)
        if not run:
            return ids[-1:], []
        if len(run) == len(ids):
            run = self._without_cut_character(run)
        if self._first_break(run) is not None:
            return self._context([], run), []
        num_complete = self._num_complete(run)
        return self._anchor or run[:num_complete], run[num_complete:]

    def _without_cut_character(self, run: list[int]) -> list[int]:
        return list(dropwhile(lambda number: self._byte_of[number] & 0xC0 == 0x80, run))

    def _trailing_bytes(self, ids: list[int]) -> list[int]:
        start = len(ids)
        while start and ids[start - 1] in self._byte_of:
            start -= 1
        return ids[start:]

    def _first_break(self, ids: list[int]) -> tuple[int, int] | None:
        """Where the byte tokens at the end of `ids` stop being UTF-8, whatever follows them."""
        run = self._trailing_bytes(ids)
        try:
            codecs.utf_8_decode(bytes(self._byte_of[number] for number in run), "strict", False)
        except UnicodeDecodeError as error:
            return error.start, error.end
        return None

    def _num_complete(self, run: list[int]) -> int:
        data = bytes(self._byte_of[number] for number in run)
        return codecs.utf_8_decode(data, "strict", False)[1]
