"""Shown texts add up to the whole text, whatever the ids and however they are split into frames."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from millrace.core.detokenize import NUM_PROMPT_TAIL_IDS, DecodedRow, DecodeRow
from millrace.testing.tokenizers import change_tokenizer, write_byte_level
from millrace.tokenizer.codec import load_codec
from millrace.tokenizer.stream import MAX_OPEN_BYTES, ByteRowDecoder

from .conftest import Pair

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
    decode_row: Callable[[DecodeRow], DecodedRow],
    frames: list[list[int]],
    prompt_ids: list[int] | None = None,
) -> tuple[str, int]:
    """The whole text, and the longest tail between two frames; behind a prompt if one is given."""
    text, longest = "", 0
    tail = tuple((prompt_ids or [])[-NUM_PROMPT_TAIL_IDS:])
    shown = len(tail)
    for number, new_ids in enumerate(frames):
        is_last = number == len(frames) - 1
        is_first = number == 0 and prompt_ids is not None
        row = decode_row(DecodeRow(tail, shown, new_ids, is_last, is_first))
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
@given(data=st.data(), text=st.text(max_size=20), num_special=st.integers(0, 3), sizes=SPLITS)
def test_any_ids_behind_any_prompt_give_what_they_add_to_its_text(
    pair: Any, data: st.DataObject, text: str, num_special: int, sizes: list[int]
) -> None:
    # It ends with a letter: how a broken run of byte tokens goes on is for tests of its own.
    prompt = pair.codec.encode_text(text + "x") + [2] * num_special
    ids = _mixed_ids(data, pair.codec.vocab_size, _single_byte_ids(pair.codec))

    shown, longest = _decode_frames(pair.codec.decode_row, _frames(ids, sizes), prompt)

    before = pair.reference.decode(prompt, skip_special_tokens=True)
    assert before + shown == pair.reference.decode(prompt + ids, skip_special_tokens=True)
    assert longest <= MAX_OPEN_BYTES + 5


@pytest.mark.parametrize("cut", [(), (1,), (1, 1)])
def test_first_space_behind_a_prompt_is_kept(pair: Any, cut: tuple[int, ...]) -> None:
    prompt = pair.reference.encode("The quick brown")
    ids = pair.reference.encode("The quick brown fox jumps")[len(prompt) :]

    assert _decode_frames(pair.codec.decode_row, _frames(ids, cut), prompt)[0] == " fox jumps"


@pytest.mark.parametrize("num_characters", [*range(1, 9), 50])
@pytest.mark.parametrize("text", ["你", "😀", "你é😀"])
def test_characters_of_byte_tokens_behind_a_prompt_of_them_are_whole(
    pairs: dict[str, Any], text: str, num_characters: int
) -> None:
    pair = pairs["sentencepiece"]
    prompt = [1, *_byte_tokens(pair, (text * num_characters)[-num_characters:].encode())]
    word = pair.codec.encode_text("the")[-1]
    ids = [*_byte_tokens(pair, "好😎".encode()), word]

    one_by_one = _decode_frames(pair.codec.decode_row, [[number] for number in ids], prompt)[0]

    assert one_by_one == "好😎" + pair.codec.piece(word).decode()


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
@pytest.mark.parametrize("num_bytes", [1, 2, 3])
def test_character_that_the_prompt_began_is_finished(
    pairs: dict[str, Any], kind: str, num_bytes: int
) -> None:
    pair = pairs[kind]
    emoji = _ids_of_bytes(pair, "😀".encode())
    prompt, ids = [*pair.reference.encode("the"), *emoji[:num_bytes]], emoji[num_bytes:]

    for frames in ([ids], [[number] for number in ids]):
        assert _decode_frames(pair.codec.decode_row, frames, prompt)[0] == "😀"


def test_text_behind_special_tokens_alone_begins_anew(pairs: dict[str, Any]) -> None:
    pair = pairs["sentencepiece"]
    ids = pair.reference.encode("The quick", add_special_tokens=False)
    assert _decode_frames(pair.codec.decode_row, [ids], [1])[0] == "The quick"


def _ids_of_bytes(pair: Any, data: bytes) -> list[int]:
    of_byte = {pair.codec.piece(number): number for number in range(pair.codec.vocab_size)}
    if "<0x00>" in pair.reference.get_vocab():
        return _byte_tokens(pair, data)
    return [of_byte[bytes([byte])] for byte in data]


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
    decoder = ByteRowDecoder({byte: bytes([byte]) for byte in range(256)}, ())
    text, longest = _decode_frames(decoder.decode_row, _frames(list(data), sizes))
    assert text == data.decode("utf-8", "replace")
    assert longest <= 3


def _byte_decoder() -> ByteRowDecoder:
    pieces = {byte: bytes([byte]) for byte in range(256)}
    return ByteRowDecoder(pieces | {256: b"<special>", 257: b"a\xe4", 10**9: b"far"}, [256])


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


def test_highest_id_does_not_size_the_table() -> None:
    tracemalloc.start()
    decoder = _byte_decoder()
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert decoder.decode_row(DecodeRow((), 0, [65, 10**9, 256])).text == "Afar"
    assert decoder.piece(10**9) == b"far"
    assert peak_bytes < 100_000


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


@pytest.mark.parametrize("kind", ["sentencepiece", "unigram", "byte_level"])
def test_pieces_at_the_start_of_a_text_are_what_it_shows_of_them(
    pairs: dict[str, Any], kind: str
) -> None:
    codec = pairs[kind].codec
    for number in codec.encode_text("The quick 😀")[1:]:
        shown = codec.decode_row(DecodeRow((), 0, [number], True)).text
        assert codec.piece(number, is_at_start=True).decode(errors="replace") == shown
    for number in codec.special_ids.values():
        assert codec.piece(number, is_at_start=True) == codec.piece(number)


@pytest.mark.parametrize("content", ["ilÖve", "đem", "Ġx", "你好嗎", "<tool>", "A B"])
def test_added_tokens_of_byte_level_vocabularies_have_the_text_that_transformers_gives(
    tmp_path: Path, content: str
) -> None:
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    write_byte_level(tmp_path)
    added = json.loads((tmp_path / "tokenizer.json").read_text())["added_tokens"]
    token = {"id": 0, "content": content, "special": False, **flags}
    change_tokenizer(tmp_path, added_tokens=[*added, token])
    pair = Pair(tmp_path, load_codec(tmp_path))
    ids = pair.codec.encode_text(f"a {content} b")

    shown, _ = _decode_frames(pair.codec.decode_row, [[number] for number in ids])

    assert pair.codec.vocab_size - 1 in ids
    assert shown == pair.reference.decode(ids)


def test_decoding_with_bytes_inside_a_chain_waits_for_whole_characters(tmp_path: Path) -> None:
    write_byte_level(tmp_path)
    decoder = json.loads((tmp_path / "tokenizer.json").read_text())["decoder"]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    change_tokenizer(tmp_path, decoder={"type": "Sequence", "decoders": [decoder, strip]})
    codec = load_codec(tmp_path)
    ids = codec.encode_text("\x00😀é fox")

    text, longest = _decode_frames(codec.decode_row, [[number] for number in ids])

    assert text == "\x00😀é fox"
    assert longest <= 6
