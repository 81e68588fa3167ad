"""Finding any of many strings."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from millrace.tokenizer.match import match_any


@given(strings=st.lists(st.text("ab<|", min_size=1, max_size=5)), text=st.text("ab<|", max_size=30))
def test_match_is_leftmost_and_longest(strings: list[str], text: str) -> None:
    match = match_any(strings).search(text)
    found = [(text.find(string), -len(string)) for string in strings if string in text]
    assert (match and (match.start(), match.start() - match.end())) == min(found, default=None)


def test_no_strings_match_nothing() -> None:
    assert match_any([]).search("anything") is None
    assert match_any([""]).search("") is None


def test_thousands_of_strings_with_one_start_stay_fast() -> None:
    pattern = match_any(f"<unused{number}>" for number in range(6000))
    text = "<unused" * 20_000
    started = time.perf_counter()
    assert pattern.search(text) is None
    assert time.perf_counter() - started < 1.0
