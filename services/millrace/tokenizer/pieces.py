"""Which row decoder a tokenizer needs, and what its tokens are made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer

from .stream import ByteRowDecoder, RowDecoder, TextRowDecoder

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


def create_row_decoder(
    tokenizer: Tokenizer, decoder: Mapping[str, Any] | None, original: Callable[[str], str]
) -> RowDecoder:
    """`decoder`: as in tokenizer.json. `original`: undoes the renaming of special strings."""
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    token_of = {number: original(token) for token, number in vocab.items()}
    special = special_ids(tokenizer, original).values()
    kinds = _kinds(decoder)
    if kinds == ["ByteLevel"]:
        return ByteRowDecoder(_byte_pieces(token_of, special), special)
    byte_of = _byte_tokens(token_of) if "ByteFallback" in kinds else {}

    def decode(ids: list[int]) -> str:
        return original(tokenizer.decode(ids, skip_special_tokens=True))

    return TextRowDecoder(
        decode,
        vocab_size=max(token_of, default=-1) + 1,
        byte_of=byte_of,
        special_pieces={number: token_of[number].encode() for number in special},
        anchor=_find_anchor(token_of, {*special, *byte_of}, decode),
        joins_bytes="ByteLevel" in kinds and not byte_of,
    )


def special_ids(tokenizer: Tokenizer, original: Callable[[str], str]) -> dict[str, int]:
    """Special tokens, which no text shows, by their strings."""
    added = tokenizer.get_added_tokens_decoder()
    return {original(token.content): number for number, token in added.items() if token.special}


def _kinds(decoder: Mapping[str, Any] | None) -> list[str]:
    """The decoder's steps in order."""
    if decoder is None:
        return []
    if decoder["type"] != "Sequence":
        return [decoder["type"]]
    return [kind for step in decoder["decoders"] for kind in _kinds(step)]


def byte_alphabet() -> dict[int, str]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's choice).

    Printable Latin-1 characters stand for themselves, the rest for U+0100 onwards.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(0x100 + number) for number, byte in enumerate(others)
    }


def _byte_pieces(token_of: Mapping[int, str], special: Iterable[int]) -> dict[int, bytes]:
    alphabet = byte_alphabet()
    # What is not in the alphabet maps to what Latin-1 cannot encode.
    table = {byte: "\uffff" for byte in range(256)}
    table |= {ord(char): chr(byte) for byte, char in alphabet.items()}
    pieces = {}
    for number, token in token_of.items():
        try:
            pieces[number] = token.translate(table).encode("latin-1")
        except UnicodeEncodeError:
            pieces[number] = token.encode()
    return pieces | {number: token_of[number].encode() for number in special}


def _byte_tokens(token_of: Mapping[int, str]) -> dict[int, int]:
    matches = ((number, _BYTE_TOKEN.fullmatch(token)) for number, token in token_of.items())
    return {number: int(match[1], 16) for number, match in matches if match}


def _find_anchor(
    token_of: Mapping[int, str], excluded: set[int], decode: Callable[[list[int]], str]
) -> int | None:
    """An ordinary token with a letter in it."""
    for number in sorted(token_of):
        token = token_of[number]
        if number not in excluded and token[-1:].isalpha() and decode([number]):
            return number
    return None
