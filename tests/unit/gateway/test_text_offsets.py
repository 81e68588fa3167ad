"""Log-probabilities of completions: offsets along the shown text, and no alternative lost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from millrace.core.detokenize import DecodeRow
from millrace.core.tokens import FinishReason, TokenDelta, TokenFrame, TokenLogprobs
from millrace.gateway.events import PositionLogprobs, TokenLogprob
from millrace.gateway.http.completion_logprobs import CompletionLogprobs, completion_logprobs
from millrace.gateway.http.text_offsets import TextOffsets
from millrace.testing.tokenizers import write_byte_level, write_sentencepiece
from millrace.tokenizer.pieces import create_row_decoder
from millrace.tokenizer.stream import RowDecoder

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.gateway.conftest import Harness

TEXT = "/v1/completions"
EPOCH = 7


def whole(text: str, tokens: Sequence[bytes]) -> list[int]:
    return TextOffsets().feed(text, tokens, is_final=True)


@pytest.mark.parametrize(
    ("text", "tokens", "offsets"),
    [
        ("Hello, world", [b"Hello", b", ", b"world"], [0, 5, 7]),
        ("", [b"<|im_end|>"] * 3, [0, 0, 0]),
        ("Hello", [b"Hello", b"<|im_end|>"], [0, 5]),
        ("Hello you", [b"Hello", b"<|x|>", b" you"], [0, 5, 5]),
        # Pieces of one character stand where it does.
        ("你a", [b"\xe4", b"\xbd", b"\xa0", b"a"], [0, 0, 0, 1]),
        ("a你", [b"a\xe4", b"\xbd\xa0"], [0, 1]),
        # One U+FFFD for the longest beginning of a character, or one per byte.
        ("\ufffda", [b"\xe4", b"\xbd", b"a"], [0, 0, 1]),
        ("\ufffd\ufffda", [b"\xe4", b"\xbd", b"a"], [0, 1, 2]),
        ("\ufffd\ufffda", [b"\xe4\xbd", b"\xe4\xbd", b"a"], [0, 1, 2]),
        ("a\ufffd", [b"a", b"\xff"], [0, 1]),
        ("\ufffd\ufffd\ufffdx", [b"A", b"\xff", b"B", b"x"], [0, 1, 2, 3]),
        # U+FFFD as the model wrote it.
        ("\ufffda", ["\ufffd".encode(), b"a"], [0, 1]),
        # A stop string cut the text.
        ("Hello", [b"Hello", b" E", b"ND"], [0, 5, 5]),
        ("Hel", [b"Hello", b" you"], [0, 3]),
        # The space before the first word is lost.
        ("tex tex", [b" tex", b" tex"], [0, 3]),
    ],
)
def test_offsets(text: str, tokens: list[bytes], offsets: list[int]) -> None:
    assert whole(text, tokens) == offsets


def decoder_of(folder: Path) -> RowDecoder:
    description = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return create_row_decoder(tokenizer, description["decoder"], lambda text: text)


def ids_of(folder: Path) -> list[int]:
    vocabulary = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    added = [each["id"] for each in vocabulary["added_tokens"]]
    model = vocabulary["model"]["vocab"]
    ids = range(len(model)) if isinstance(model, list) else model.values()
    return sorted({*ids, *added})


def told_in_pieces(
    decoder: RowDecoder,
    ids: Sequence[int],
    cuts: Sequence[int] = (),
    lag: int = 0,
    stop: int = 1000,
) -> tuple[str, list[int], list[int]]:
    """The text, the offsets told at once, and those told as the tokens come.

    `lag` characters are held back until the end, as what may begin a stop string is; `stop` cuts
    the text there.
    """
    tail: tuple[int, ...] = ()
    num_shown, certain, num_told = 0, "", 0
    told, streamed = [], TextOffsets()
    bounds = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    for start, end in pairwise(bounds):
        row = DecodeRow(tail, num_shown, ids[start:end], final=end == len(ids))
        decoded = decoder.decode_row(row)
        tail, num_shown = decoded.tail_ids, decoded.num_tail_shown
        certain += decoded.text
        upto = min(stop, len(certain) if row.final else max(num_told, len(certain) - lag))
        told += streamed.feed(certain[num_told:upto], map(decoder.piece, ids[start:end]))
        num_told = max(num_told, upto)
    told += streamed.feed("", [], is_final=True)
    text = certain[:stop]
    return text, whole(text, [decoder.piece(each) for each in ids]), told


@pytest.mark.parametrize("kind", [write_byte_level, write_sentencepiece])
@pytest.mark.parametrize("weight", [0, 3])
def test_offsets_are_the_same_whole_and_streamed(tmp_path: Path, kind: Any, weight: int) -> None:
    decoder, known = decoder_of(kind(tmp_path)), ids_of(tmp_path)
    # Bytes and broken characters as often as words.
    usual = [*known, *[n for n in known if not is_text(decoder.piece(n))] * weight]

    @given(
        ids=st.lists(st.sampled_from(usual), min_size=1, max_size=24),
        cuts=st.lists(st.integers(0, 100), max_size=24),
        lag=st.sampled_from([0, 1, 5]),
        stop=st.sampled_from([1000, 0, 1, 3, 7]),
    )
    def check(ids: list[int], cuts: list[int], lag: int, stop: int) -> None:
        text, at_once, in_pieces = told_in_pieces(decoder, ids, cuts, lag, stop)
        assert in_pieces == at_once
        assert len(at_once) == len(ids)
        assert at_once == sorted(at_once)
        assert at_once[-1] <= len(text)

    check()


@pytest.mark.parametrize("kind", [write_byte_level, write_sentencepiece])
def test_text_at_an_offset_begins_with_its_token(tmp_path: Path, kind: Any) -> None:
    decoder = decoder_of(kind(tmp_path))
    words = [n for n in ids_of(tmp_path) if is_word(decoder, n)]

    @given(ids=st.lists(st.sampled_from(words), min_size=1, max_size=24))
    def check(ids: list[int]) -> None:
        text, offsets, _ = told_in_pieces(decoder, ids)
        for number, (token_id, offset) in enumerate(zip(ids, offsets, strict=True)):
            token = decoder.piece(token_id).decode()
            # The space before the first word may be lost.
            allowed = (token,) if number else (token, token.lstrip())
            assert text[offset:].startswith(allowed)

    check()


def is_text(piece: bytes) -> bool:
    try:
        return bool(piece.decode())
    except UnicodeDecodeError:
        return False


def is_word(decoder: RowDecoder, token_id: int) -> bool:
    decoded = decoder.decode_row(DecodeRow((), 0, (token_id, token_id), final=True))
    return is_text(decoder.piece(token_id)) and len(decoded.text) >= 2


def entry(token_id: int, raw: bytes, logprob: float) -> TokenLogprob:
    return TokenLogprob(token_id, raw, logprob)


def test_no_alternative_takes_the_place_of_another() -> None:
    chosen = entry(1, b"\xe4", -0.75)
    top = (
        entry(7, b"a", -0.25),
        chosen,
        entry(2, b"\xbd", -2.0),
        entry(3, b"a", -3.0),
        entry(4, b"", -4.0),
        entry(5, b"", -5.0),
    )
    found = completion_logprobs("\ufffd", [PositionLogprobs(chosen, top)])

    assert found["tokens"] == [r"bytes:\xe4"]
    assert found["top_logprobs"] == [
        {
            "a": -0.25,
            r"bytes:\xe4": -0.75,
            r"bytes:\xbd": -2.0,
            "token_id:3": -3.0,
            "": -4.0,
            "token_id:5": -5.0,
        }
    ]
    assert list(found["top_logprobs"][0]) == [
        "a",
        r"bytes:\xe4",
        r"bytes:\xbd",
        "token_id:3",
        "",
        "token_id:5",
    ]


def test_the_chosen_token_keeps_its_name_and_its_own_value() -> None:
    chosen = entry(9, b"a", -6.0)
    position = PositionLogprobs(chosen, (entry(1, b"a", -0.5), entry(2, b"b", -1.0)))

    found = completion_logprobs("a", [position])

    assert found["token_logprobs"] == [-6.0]
    assert found["top_logprobs"] == [{"token_id:1": -0.5, "b": -1.0, "a": -6.0}]


ALTERNATIVES = st.dictionaries(st.integers(0, 30), st.floats(-20, 0), max_size=6)


@given(tops=st.lists(ALTERNATIVES, min_size=1, max_size=5), data=st.data())
def test_every_alternative_is_there_and_distinguishable(tops: Any, data: Any) -> None:
    raws = [b"", b"a", b"\xe4", "é".encode(), b"a"]
    positions = []
    for top in tops:
        entries = [entry(number, raws[number % 5], value) for number, value in top.items()]
        number = data.draw(st.integers(0, 30))
        value = next((each.logprob for each in entries if each.token_id == number), -21.0)
        positions.append(PositionLogprobs(entry(number, raws[number % 5], value), tuple(entries)))

    found = completion_logprobs("", positions)

    for position, name, own, named in zip(
        positions, found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True
    ):
        ids = {each.token_id for each in position.top} | {position.chosen.token_id}
        assert len(named) == len(ids)
        assert named[name] == own == position.chosen.logprob
        assert list(named.values()) == sorted(named.values(), reverse=True)


def test_columns_wait_until_their_offsets_are_known() -> None:
    writer = CompletionLogprobs()
    tokens = [
        PositionLogprobs(entry(n, raw, -1.0), ()) for n, raw in enumerate([b" E", b"N", b"x"])
    ]

    assert writer.feed("", tokens[:1])["text_offset"] == [0]  # type: ignore[index]
    assert writer.feed("", tokens[1:2]) is None
    assert writer.feed(" ENx", tokens[2:])["text_offset"] == [2, 3]  # type: ignore[index]
    assert writer.feed("", [], is_final=True) is None


def columns(reply_text: str) -> tuple[str, dict[str, list[Any]]]:
    """Text and joined columns of a streamed reply."""
    text = ""
    joined: dict[str, list[Any]] = {}
    for block in reply_text.split("\n\n"):
        payload = block.removeprefix("data: ")
        if not payload or payload == "[DONE]":
            continue
        choice = json.loads(payload)["choices"][0]
        text += choice["text"]
        for name, values in (choice["logprobs"] or {}).items():
            joined.setdefault(name, []).extend(values)
    return text, joined


@pytest.mark.parametrize("stop", [None, " EN", "ld"])
async def test_a_stream_tells_what_the_whole_reply_tells(gateway: Harness, stop: Any) -> None:
    gateway.reply = [300, 301, *"é".encode(), 255, 302, 304, 303, 256]
    body = {"prompt": "a", "logprobs": 2, "stop": stop}
    async with gateway.client() as client:
        reply = (await client.post(TEXT, json=body)).json()["choices"][0]
        streamed = await client.post(TEXT, json={**body, "stream": True})

    text, joined = columns(streamed.text)
    assert text == reply["text"]
    assert joined == reply["logprobs"]
    assert max(joined["text_offset"]) <= len(text)
    assert len(joined["tokens"]) == len(joined["text_offset"]) == len(joined["top_logprobs"])


@pytest.mark.parametrize("path", [TEXT, "/v1/chat/completions"])
@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
async def test_a_logprob_that_is_none_ends_its_request_alone(
    gateway: Harness, path: str, is_streamed: bool, value: float
) -> None:
    import asyncio

    gateway.silence()
    is_chat = path != TEXT
    body = {"messages": [{"role": "user", "content": "a"}]} if is_chat else {"prompt": "a"}
    asked = {**body, "stream": is_streamed, "logprobs": True if is_chat else 1}
    async with gateway.client() as client:
        broken = asyncio.create_task(client.post(path, json=asked))
        await gateway.until(lambda: len(gateway.bus.published) == 1)
        first = gateway.queued.request_id
        fine = asyncio.create_task(client.post(path, json=asked))
        await gateway.until(lambda: len(gateway.bus.published) == 2)
        frame = TokenFrame(EPOCH)
        for request_id, logprob in ((first, value), (gateway.queued.request_id, -0.5)):
            entry = [TokenLogprobs(logprob, ((300, logprob),))]
            frame.deltas.append(TokenDelta(request_id, 0, 0, [300], FinishReason.STOP, entry))
        gateway.stream.push(frame)
        replies = [await broken, await fine]

    assert "NaN" not in replies[0].text
    assert "Infinity" not in replies[0].text
    assert "the model's output is not finite" in replies[0].text
    assert replies[0].status_code == (200 if is_streamed else 500)
    assert replies[1].status_code == 200
    assert "error" not in replies[1].text


async def test_an_impossible_token_has_the_least_logprob(gateway: Harness) -> None:
    import asyncio

    gateway.silence()
    async with gateway.client() as client:
        reply = asyncio.create_task(client.post(TEXT, json={"prompt": "a", "logprobs": 1}))
        await gateway.until(lambda: gateway.bus.published != [])
        entry = [TokenLogprobs(float("-inf"), ((300, -0.5),))]
        delta = TokenDelta(gateway.queued.request_id, 0, 0, [301], FinishReason.STOP, entry)
        gateway.stream.push(TokenFrame(EPOCH, deltas=[delta]))
        logprobs = (await reply).json()["choices"][0]["logprobs"]

    assert logprobs["token_logprobs"] == [-9999.0]
    assert logprobs["top_logprobs"] == [{"Hello": -0.5, ", ": -9999.0}]
