"""Tables for people: as wide as they need to be, or as the terminal is."""

from __future__ import annotations

from collections.abc import Sequence

GAP = "  "
MIN_TEXT_WIDTH = 8


def table_lines(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int | None = None,
    *,
    right: Sequence[str] = (),
    cut_mark: str = "…",
) -> list[str]:
    """The header and a line per row. What is over `width` is taken from the widest columns.

    Columns named in `right` hold numbers: they end at the right, and are never cut. `width` None
    is any width; a table of many columns may stay wider than a narrow terminal.
    """
    lines = (header, *rows)
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    floors = [
        length if name in right else min(length, max(len(name), MIN_TEXT_WIDTH))
        for name, length in zip(header, widths, strict=True)
    ]
    if width is not None:
        widths = _fitted(widths, floors, width - len(GAP) * (len(header) - 1))
    return [
        GAP.join(
            _cell(text, length, is_right=name in right, cut_mark=cut_mark)
            for name, text, length in zip(header, line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]


def _fitted(widths: Sequence[int], floors: Sequence[int], width: int) -> list[int]:
    """Takes what is too much from the widest column that can give, one letter after the other."""
    fitted = list(widths)
    for _ in range(max(0, sum(fitted) - width)):
        giving = [i for i in range(len(fitted)) if fitted[i] > floors[i]]
        if not giving:
            break
        fitted[max(giving, key=lambda i: fitted[i])] -= 1
    return fitted


def _cell(text: str, width: int, *, is_right: bool, cut_mark: str) -> str:
    if len(text) > width:
        text = text[: max(0, width - len(cut_mark))] + cut_mark
    return text.rjust(width) if is_right else text.ljust(width)
