"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def print_table(
    caption: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """A caption and the rows under it; `columns` are keys of the rows with their headers."""
    print(f"\n{caption}\n")
    lines = [list(columns.values())]
    lines += [[show(row.get(key)) for key in columns] for row in rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    for line in lines:
        # The first column to the left, the others to the right.
        rest = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        print("  ".join([line[0].ljust(widths[0]), *rest]).rstrip())


def show(value: Any) -> str:
    """A cell; "-" where nothing was measured."""
    return "-" if value is None else str(value)
