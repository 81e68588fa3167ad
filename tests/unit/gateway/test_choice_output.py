"""A choice's tokens: repeats, gaps, and text that depends on the tokens alone."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from millrace.core.detokenize import DecodedRow, DecodeRow
from millrace.core.tokens import FinishReason, TokenDelta
from millrace.gateway.choice_output import Acceptance, ChoiceOutput
from millrace.gateway.special_tokens import SpecialTokens
from millrace.gateway.stop_strings import StopStrings

if TYPE_CHECKING:
    from collections.abc import Callable

EOS, MARK = 256, 257
SPECIAL = SpecialTokens({"<eos>": EOS, "<|>": MARK})
WORDS = {300: b"ab", 301: b"ba", 302: "é!".encode(), 303: b"aba"}


def decode(row: DecodeRow) -> DecodedRow:
    ids = [i for i in (*row.tail_ids, *row.new_ids) if i not in SPECIAL.ids]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    raw = b"".join(WORDS.get(i, bytes([i]) if i < 256 else b"") for i in ids)
    text = decoder.decode(raw, row.final)
    num_held = len(decoder.getstate()[0])
    return DecodedRow(text, tuple(ids[len(ids) - num_held :]), 0)


def choice_of(stops: list[str] | None = None, min_tokens: int = 0) -> ChoiceOutput:
    return ChoiceOutput(0, StopStrings(stops or [], SPECIAL), frozenset({EOS}), min_tokens)


def delta(start: int, ids: list[int], finish: FinishReason = FinishReason.NONE) -> TokenDelta:
    return TokenDelta("r", 0, start, ids, finish)


def pump(choice: ChoiceOutput, decoder: Callable[[DecodeRow], DecodedRow] = decode) -> Any:
    """Decodes all that is there; (text, ids) handed on."""
    text, ids = "", []
    while (row := choice.next_row()) is not None:
        decoded = decoder(row)
        probes = [decoder(probe) for probe in choice.probe_rows(row, decoded)]
        progress = choice.apply(row, decoded, probes)
        text += progress.text
        ids += progress.token_ids
    return text, ids


SYMBOLS = {97: "a", 98: "b", 300: "ab", 303: "aba"}


def _first_match(symbols: list[str], stops: list[list[str]]) -> tuple[str, list[str] | None]:
    """What is shown, and the stop string completed first; of several the longest."""
    for end in range(1, len(symbols) + 1):
        found = []
        for stop in stops:
            heard = [s for s in symbols[:end] if s != "<|>" or "<|>" in stop]
            if heard[-len(stop) :] == stop and heard[-1] == symbols[end - 1]:
                found.append((len(stop), stop, heard[: -len(stop)]))
        if found:
            _, stop, before = max(found, key=lambda match: match[0])
            return "".join(before).replace("<|>", ""), stop
    return "".join(symbols).replace("<|>", ""), None


@given(
    ids=st.lists(st.sampled_from([*SYMBOLS, MARK, MARK]), max_size=14),
    stops=st.lists(
        st.lists(st.sampled_from(["a", "b", "<|>"]), min_size=2, max_size=4),
        max_size=3,
        unique_by="".join,
    ),
)
@example(ids=[97, MARK, 97, 98], stops=[["a", "a"], ["<|>", "b"]])
@example(ids=[97, MARK, 98, 97], stops=[["a", "a"], ["<|>", "b"]])
@example(ids=[97, MARK, 97], stops=[["a", "<|>", "b"], ["a", "a"]])
@example(ids=[97, 98, MARK, 98, MARK], stops=[["b", "b"], ["b", "<|>", "b", "<|>"]])
def test_special_tokens_count_for_the_stop_strings_that_have_them(ids: Any, stops: Any) -> None:
    choice = choice_of(["".join(stop) for stop in stops])
    symbols = [s for i in ids for s in (["<|>"] if i == MARK else SYMBOLS[i])]
    text, stop = _first_match(symbols, stops)

    shown = ""
    for number, token_id in enumerate(ids):
        choice.accept(delta(number, [token_id]))
        shown += pump(choice)[0]
    choice.accept(delta(len(ids), [], FinishReason.LENGTH))

    assert shown + pump(choice)[0] == text
    matched = choice.matched_stop
    assert (matched is None) == (stop is None)
    # Two stop strings may match at once with the same length.
    assert len((matched or "").replace("<|>", "|")) == len(stop or "")


def test_text_goes_on_behind_the_end_of_the_prompt() -> None:
    prompt = list(range(100, 120))
    choice = ChoiceOutput(0, StopStrings(["x"]), frozenset({EOS}), prompt_token_ids=prompt)
    choice.accept(delta(0, [97, 98]))
    row = choice.next_row()

    assert row == DecodeRow(tuple(prompt[-16:]), 16, (97, 98), is_after_prompt=True)
    assert choice.probe_rows(row, DecodedRow("ax", (98,), 1)) == [
        DecodeRow(tuple(prompt[-16:]), 16, (97,), is_after_prompt=True)
    ]

    choice.apply(row, DecodedRow("ab", (98,), 1))
    choice.accept(delta(2, [99]))
    assert choice.next_row() == DecodeRow((98,), 1, (99,))


@pytest.mark.parametrize(
    ("prompt", "frames", "expected"),
    [
        ([], [[97], [98]], [1, 0]),
        ([], [[97, 98, 99]], [1]),
        ([], [[MARK], [MARK, 97, 98], [99]], [1, 2, 0]),
        ([MARK], [[97]], [1]),
        ([97, MARK], [[97]], [0]),
    ],
)
def test_tokens_that_begin_the_text_are_counted(
    prompt: list[int], frames: list[list[int]], expected: list[int]
) -> None:
    choice = ChoiceOutput(0, StopStrings([]), frozenset({EOS}), 0, prompt, SPECIAL.ids)
    counts, start = [], 0
    for ids in frames:
        choice.accept(delta(start, ids))
        start += len(ids)
        row = choice.next_row()
        assert row is not None
        counts.append(choice.apply(row, decode(row)).num_at_start)
    assert counts == expected


def test_double_tokens_are_skipped() -> None:
    choice = choice_of()
    choice.accept(delta(0, [1, 2, 3]))

    assert choice.accept(delta(1, [2, 3])) is Acceptance.STALE
    assert choice.accept(delta(1, [2, 3, 4])) is Acceptance.NEW
    assert choice.token_ids == [1, 2, 3, 4]


def test_gap_is_not_taken() -> None:
    choice = choice_of()
    choice.accept(delta(0, [1]))

    assert choice.accept(delta(2, [3])) is Acceptance.GAP
    assert choice.token_ids == [1]


def test_end_without_new_tokens_counts() -> None:
    choice = choice_of()
    choice.accept(delta(0, [104, 105]))

    assert choice.accept(delta(0, [104, 105], FinishReason.LENGTH)) is Acceptance.NEW
    assert pump(choice) == ("hi", [104, 105])
    assert choice.ended is FinishReason.LENGTH


def test_end_of_an_older_shorter_delta_does_not_count() -> None:
    choice = choice_of()
    choice.accept(delta(0, [1, 2, 3]))

    assert choice.accept(delta(0, [1], FinishReason.LENGTH)) is Acceptance.STALE
    assert not choice.is_settled


def test_stop_token_counts_but_is_not_text() -> None:
    choice = choice_of()
    choice.accept(delta(0, [104, 105, EOS], FinishReason.STOP))

    assert pump(choice) == ("hi", [104, 105, EOS])
    assert choice.num_emitted == 3


def test_unfinished_character_is_shown_as_replacement_at_the_end() -> None:
    choice = choice_of()
    choice.accept(delta(0, [104, 0xC3]))
    assert pump(choice) == ("h", [104, 0xC3])

    choice.accept(delta(2, [], FinishReason.LENGTH))

    assert pump(choice) == ("�", [])


def test_tokens_count_up_to_the_one_that_completes_the_match() -> None:
    choice = choice_of(["bb"])
    choice.accept(delta(0, [97, 300, 98, 99, 99]))

    assert pump(choice) == ("aa", [97, 300, 98])
    assert (choice.ended, choice.matched_stop, choice.num_emitted) == (FinishReason.STOP, "bb", 3)


def test_stop_string_does_not_count_before_min_tokens() -> None:
    choice = choice_of(["a"], min_tokens=3)
    choice.accept(delta(0, [97, 97, 98, 97, 98]))

    assert pump(choice) == ("aab", [97, 97, 98, 97])


def test_stop_string_counts_at_the_token_that_reaches_min_tokens() -> None:
    choice = choice_of(["a"], min_tokens=3)
    choice.accept(delta(0, [98, 98, 97, 98]))

    assert pump(choice) == ("bb", [98, 98, 97])


def test_text_held_back_is_shown_at_the_end() -> None:
    choice = choice_of(["END"])
    choice.accept(delta(0, list(b"xEN")))
    assert pump(choice)[0] == "x"

    choice.accept(delta(3, [EOS], FinishReason.STOP))

    assert pump(choice) == ("EN", [EOS])


def test_choice_that_ended_by_stop_string_goes_on_accepting_silently() -> None:
    choice = choice_of(["b"])
    choice.accept(delta(0, [98]))
    pump(choice)

    assert choice.accept(delta(1, [97])) is Acceptance.NEW
    assert pump(choice) == ("", [])
    assert choice.token_ids == [98, 97]


@pytest.mark.parametrize("min_tokens", [0, 3])
@given(
    ids=st.lists(st.sampled_from([97, 98, 0xC3, 0xA9, 300, 301, 302, 303, MARK]), max_size=14),
    stops=st.lists(
        st.lists(st.sampled_from(["a", "b", "é", "!", "<|>"]), min_size=1, max_size=3).map("".join),
        max_size=3,
    ),
    data=st.data(),
)
def test_any_split_into_frames_gives_the_same_text_tokens_and_stop(
    min_tokens: Any, ids: Any, stops: Any, data: Any
) -> None:
    finish = FinishReason.LENGTH
    reference = choice_of(stops, min_tokens)
    text, shown = "", list[int]()
    for index, token_id in enumerate(ids):
        reference.accept(delta(index, [token_id]))
        piece, new = pump(reference)
        text, shown = text + piece, shown + new
    reference.accept(delta(len(ids), [], finish))
    piece, new = pump(reference)
    text, shown = text + piece, shown + new

    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=5)))
    other = choice_of(stops, min_tokens)
    other_text, other_shown = "", list[int]()
    bounds = [0, *cuts, len(ids)]
    for begin, end in zip(bounds, bounds[1:], strict=False):
        # Frames may repeat what came before.
        back = data.draw(st.integers(0, begin))
        is_last = end == len(ids)
        other.accept(delta(back, ids[back:end], finish if is_last else FinishReason.NONE))
        if is_last or data.draw(st.booleans()):
            piece, new = pump(other)
            other_text, other_shown = other_text + piece, other_shown + new

    assert (other_text, other_shown) == (text, shown)
    assert other.matched_stop == reference.matched_stop
    assert other.ended == reference.ended
