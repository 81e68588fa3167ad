"""Shown texts add up to the whole text, whatever the ids and however they are split into frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millrace.core.detokenize import DecodedRow, DecodeRow
from millrace.tokenizer.stream import MAX_OPEN_BYTES, ByteRowDecoder

SPLITS = st.lists(st.integers(0, 5), max_size=60)
EVERYWHERE = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def _frames(ids: list[int], sizes: Iterable[int]) -> list[list[int]]:
    frames, start = [], 0
    for size in sizes:
        frames.append(ids[start : start + size])
        start += size
    return [*frames, ids[start:]]


def _decode_frames(
    decode_row: Callable[[DecodeRow], DecodedRow], frames: list[list[int]]
) -> tuple[str, int]:
    """The whole text, and the longest tail between two frames."""
    text, shown, longest = "", 0, 0
    tail: tuple[int, ...] = ()
    for number, new_ids in enumerate(frames):
        is_last = number == len(frames) - 1
        row = decode_row(DecodeRow(tail, shown, new_ids, is_last))
        text, tail, shown = text + row.text, row.tail_ids, row.num_tail_shown
        longest = max(longest, len(tail))
    assert tail == ()
    return text, longest


def _mixed_ids(data: st.DataObject, vocab_size: int, byte_ids: list[int]) -> list[int]:
    """Any ids, unknown ones among them, with many single bytes, of which characters are made."""
    some = st.integers(0, vocab_size + 3)
    return data.draw(st.lists(st.one_of(some, st.sampled_from(byte_ids or [0])), max_size=60))


def _single_byte_ids(codec: Any) -> list[int]:
    return [
        number
        for number in range(codec.vocab_size)
        if len(codec.piece(number)) == 1 and codec.piece(number)[0] >= 0x80
    ]


@EVERYWHERE
@given(data=st.data(), sizes=SPLITS)
def test_any_split_of_any_ids_gives_the_whole_text(
    pair: Any, data: st.DataObject, sizes: list[int]
) -> None:
    ids = _mixed_ids(data, pair.codec.vocab_size, _single_byte_ids(pair.codec))
    text, longest = _decode_frames(pair.codec.decode_row, _frames(ids, sizes))
    assert text == pair.reference.decode(ids, skip_special_tokens=True)
    assert longest <= MAX_OPEN_BYTES + 5


@EVERYWHERE
@given(data=st.data(), sizes=SPLITS)
def test_any_split_of_any_ids_gives_the_whole_text_on_default_model(
    default_pair: Any, data: st.DataObject, sizes: list[int]
) -> None:
    codec = default_pair.codec
    ids = _mixed_ids(data, codec.vocab_size, _single_byte_ids(codec))
    text, longest = _decode_frames(codec.decode_row, _frames(ids, sizes))
    assert text == default_pair.reference.decode(ids, skip_special_tokens=True)
    assert longest <= 3


@EVERYWHERE
@given(text=st.text(max_size=40), sizes=SPLITS)
def test_any_text_comes_back_from_byte_level_ids(
    pairs: dict[str, Any], text: str, sizes: list[int]
) -> None:
    codec = pairs["byte_level"].codec
    ids = codec.encode_text(text)
    assert _decode_frames(codec.decode_row, _frames(ids, sizes))[0] == text


@EVERYWHERE
@given(data=st.binary(max_size=40), sizes=SPLITS)
def test_bytes_decode_as_utf8_with_replacements(data: bytes, sizes: list[int]) -> None:
    decoder = ByteRowDecoder([bytes([byte]) for byte in range(256)], ())
    text, longest = _decode_frames(decoder.decode_row, _frames(list(data), sizes))
    assert text == data.decode("utf-8", "replace")
    assert longest <= 3


def _byte_decoder() -> ByteRowDecoder:
    return ByteRowDecoder([*(bytes([byte]) for byte in range(256)), b"<special>", b"a\xe4"], [256])


def test_split_character_is_held_until_it_is_whole() -> None:
    decoder = _byte_decoder()
    first = decoder.decode_row(DecodeRow((), 0, [0xF0, 0x9F, 0x98]))
    assert first == DecodedRow("", (0xF0, 0x9F, 0x98), 3)
    second = decoder.decode_row(DecodeRow(first.tail_ids, first.num_tail_shown, [0x80]))
    assert second == DecodedRow("😀", (), 0)


def test_text_before_a_split_character_is_shown_at_once() -> None:
    decoder = _byte_decoder()
    first = decoder.decode_row(DecodeRow((), 0, [ord("x"), 257]))
    assert first == DecodedRow("xa", (257,), 1)
    second = decoder.decode_row(DecodeRow((257,), 1, [0xBD, 0xA0]))
    assert second == DecodedRow("你", (), 0)


def test_unfinished_character_is_shown_as_replacement_at_the_end() -> None:
    row = _byte_decoder().decode_row(DecodeRow((0xF0,), 1, [0x9F], final=True))
    assert row == DecodedRow("\ufffd", (), 0)


def test_special_token_inside_a_character_is_skipped() -> None:
    decoder = _byte_decoder()
    first = decoder.decode_row(DecodeRow((), 0, [0xC3, 256]))
    assert first == DecodedRow("", (0xC3,), 1)
    assert decoder.decode_row(DecodeRow((0xC3,), 1, [0xA9])).text == "é"


def test_ids_outside_the_vocabulary_show_nothing() -> None:
    assert _byte_decoder().decode_row(DecodeRow((), 0, [9999, 65])).text == "A"
    assert _byte_decoder().piece(9999) == b""


def test_endless_invalid_bytes_keep_the_tail_short() -> None:
    decoder = _byte_decoder()
    text, longest = _decode_frames(decoder.decode_row, [[0xE4]] * 500)
    assert text == "\ufffd" * 500
    assert longest == 1


def _byte_token(pair: Any, byte: int) -> int:
    return int(pair.reference.convert_tokens_to_ids(f"<0x{byte:02X}>"))


def _byte_tokens(pair: Any, data: bytes) -> list[int]:
    return [_byte_token(pair, byte) for byte in data]


def test_byte_run_is_held_until_it_ends(pairs: dict[str, Any]) -> None:
    pair = pairs["sentencepiece"]
    word = pair.codec.encode_text("the")[-1]
    emoji = _byte_tokens(pair, "😀".encode())

    held = pair.codec.decode_row(DecodeRow((), 0, [word, *emoji]))
    shown = pair.codec.decode_row(DecodeRow(held.tail_ids, held.num_tail_shown, [word]))

    assert held.tail_ids == (word, *emoji)
    assert shown.text.startswith("😀")
    assert shown.tail_ids == (word,)


def test_endless_invalid_byte_run_is_shown_and_bounded(pairs: dict[str, Any]) -> None:
    pair = pairs["sentencepiece"]
    ids = _byte_tokens(pair, b"\xf0\x9f\x98\x80" * 10 + b"\xff" + b"\xe4\xbd\xa0" * 100)
    text, longest = _decode_frames(pair.codec.decode_row, [[number] for number in ids])
    assert text == "\ufffd" * len(ids)
    assert longest <= MAX_OPEN_BYTES


def test_endless_valid_byte_run_is_shown_and_bounded(pairs: dict[str, Any]) -> None:
    pair = pairs["sentencepiece"]
    word = pair.codec.encode_text("the")[-1]
    ids = [word, *_byte_tokens(pair, "你😀".encode() * 100), word]
    one_by_one, longest = _decode_frames(pair.codec.decode_row, [[number] for number in ids])
    at_once, _ = _decode_frames(pair.codec.decode_row, [ids])
    assert one_by_one == at_once == pair.reference.decode(ids)
    assert longest <= MAX_OPEN_BYTES + 1


def test_words_keep_their_spaces_across_frames(pair: Any) -> None:
    ids = pair.codec.encode_text("The quick brown fox")
    text, _ = _decode_frames(pair.codec.decode_row, [[number] for number in ids])
    assert text == "The quick brown fox"


@pytest.mark.parametrize("text", ["The quick brown fox", "😀 café 東京"])
def test_pieces_of_byte_level_tokens_add_up_to_the_text(pairs: dict[str, Any], text: str) -> None:
    codec = pairs["byte_level"].codec
    assert b"".join(codec.piece(number) for number in codec.encode_text(text)) == text.encode()


def test_pieces_of_sentencepiece_tokens_carry_spaces_and_bytes(pairs: dict[str, Any]) -> None:
    pair = pairs["sentencepiece"]
    ids = pair.reference.encode("The quick 😀", add_special_tokens=False)
    assert b"".join(pair.codec.piece(number) for number in ids) == " The quick 😀".encode()
    assert pair.codec.piece(_byte_token(pair, 0xE4)) == b"\xe4"


def test_pieces_of_special_tokens_are_their_strings(pair: Any) -> None:
    for number, token in pair.reference.added_tokens_decoder.items():
        assert pair.codec.piece(number) == token.content.encode()


def test_decoding_with_bytes_inside_a_chain_waits_for_whole_characters(tmp_path: Any) -> None:
    import json

    from millrace.testing.tokenizers import write_byte_level
    from millrace.tokenizer.codec import load_codec

    write_byte_level(tmp_path)
    path = tmp_path / "tokenizer.json"
    description = json.loads(path.read_text())
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    description["decoder"] = {"type": "Sequence", "decoders": [description["decoder"], strip]}
    path.write_text(json.dumps(description))
    codec = load_codec(tmp_path)
    ids = codec.encode_text("\x00😀é fox")

    text, longest = _decode_frames(codec.decode_row, [[number] for number in ids])

    assert text == "\x00😀é fox"
    assert longest <= 6
