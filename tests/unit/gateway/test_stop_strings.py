"""Stop strings: held-back text, earliest match, independence of the cuts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.gateway.stop_strings import StopScanner, StopStrings


def scan_all(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    scanner = StopScanner(StopStrings(stops))
    shown = ""
    for piece in pieces:
        scan = scanner.feed(piece)
        shown += scan.text
        if scan.stop is not None:
            return shown, scan.stop
    return shown + scanner.flush(), None


def first_match(stops: list[str], text: str) -> tuple[str, str | None]:
    """The match that is complete first; of those complete at once the longest."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        (["END"], ["abc"], ("abc", None)),
        (["END"], ["ab", "E", "N", "D", "x"], ("ab", "END")),
        (["END"], ["abEN", "Ex"], ("abENEx", None)),
        (["aab"], ["aa", "ab"], ("a", "aab")),
        (["abcd", "c"], ["abcd"], ("ab", "c")),
        (["bc", "abc"], ["xabc"], ("x", "abc")),
        (["。"], ["你好", "。再见"], ("你好", "。")),
    ],
)
def test_stop_string_is_found_and_cut_off(stops: Any, pieces: Any, expected: Any) -> None:
    assert scan_all(stops, pieces) == expected


def test_suffix_that_may_begin_a_stop_string_is_held_back() -> None:
    scanner = StopScanner(StopStrings(["\n\nUser:"]))

    assert scanner.feed("Hello\n").text == "Hello"
    assert scanner.feed("\nUs").text == ""
    assert scanner.feed("e me").text == "\n\nUse me"


def test_text_passes_unchanged_without_stop_strings() -> None:
    scanner = StopScanner(StopStrings([]))

    assert scanner.feed("anything").text == "anything"
    assert scanner.flush() == ""


def test_match_is_let_pass_while_stopping_is_not_allowed() -> None:
    scanner = StopScanner(StopStrings(["ab"]))

    assert scanner.feed("xab", can_stop=False).stop is None
    assert scanner.feed("ab").stop == "ab"


def test_match_that_begins_before_stopping_is_allowed_counts() -> None:
    scanner = StopScanner(StopStrings(["ab"]))

    scanner.feed("xa", can_stop=False)

    assert scanner.feed("b").stop == "ab"


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4),
    st.text("abc", max_size=30),
    st.data(),
)
def test_any_cut_of_the_text_gives_the_same_stop(stops: Any, text: Any, data: Any) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    bounds = [0, *cuts, len(text)]
    pieces = [text[begin:end] for begin, end in zip(bounds, bounds[1:], strict=False)]

    assert scan_all(stops, pieces) == first_match(stops, text)
