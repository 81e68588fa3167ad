"""Tables fit where they are shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.core.table import GAP, MIN_TEXT_WIDTH, table_lines

CELL = st.text(st.characters(codec="ascii", exclude_categories=["C", "Z"]), max_size=40)


def test_columns_are_as_wide_as_they_need_to_be() -> None:
    assert table_lines(["a", "count"], [["xyz", "1"], ["x", "1000"]], right=["count"]) == [
        "a    count",
        "xyz      1",
        "x     1000",
    ]


def test_the_widest_text_is_cut_first_and_numbers_never() -> None:
    rows = [["short", "a long reason for all of this", "123456789012345"]]

    lines = table_lines(["name", "reason", "bytes"], rows, 40, right=["bytes"])

    assert lines[1] == "short  a long reason f…  123456789012345"
    assert max(map(len, lines)) <= 40


@given(st.data())
def test_no_line_is_over_the_width_while_a_text_can_give(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 6))
    names = [f"c{i}" for i in range(count)]
    row = st.lists(CELL, min_size=count, max_size=count)
    rows = data.draw(st.lists(row, max_size=5))
    right = data.draw(st.sets(st.sampled_from(names)))
    width = data.draw(st.integers(10, 200))

    lines = table_lines(names, rows, width, right=sorted(right))
    whole = table_lines(names, rows, right=sorted(right))

    lengths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    floor = sum(
        length if name in right else min(length, MIN_TEXT_WIDTH)
        for name, length in zip(names, lengths, strict=True)
    ) + len(GAP) * (count - 1)
    assert len(lines) == len(rows) + 1
    assert max(map(len, lines)) <= max(width, floor)
    if sum(lengths) + len(GAP) * (count - 1) <= width:
        assert lines == whole
    for line, cells in zip(lines[1:], rows, strict=True):
        numbers = [cell for name, cell in zip(names, cells, strict=True) if name in right]
        assert all(number in line for number in numbers)


@pytest.mark.parametrize("width", [0, 1, 5])
def test_a_terminal_of_no_width_shows_a_table_all_the_same(width: int) -> None:
    assert table_lines(["a", "b"], [["1", "2"]], width) == ["a  b", "1  2"]
