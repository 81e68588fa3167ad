"""A report as texts and tables, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from millrace.cli.console import Console
from millrace.core.table import GAP


@dataclass(frozen=True, slots=True)
class Table:
    """`cells` are the header and a line per row; all columns but the first hold numbers."""

    caption: str
    cells: list[list[str]]


@dataclass(slots=True)
class Sheet:
    """Texts and tables in their order."""

    blocks: list[str | Table] = field(default_factory=list)

    def text(self, text: str) -> None:
        """A paragraph."""
        self.blocks.append(text.strip())

    def table(
        self, caption: str, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """A caption and the rows under it; `columns` are keys of the rows with their headers."""
        cells = [list(columns.values()), *([show(row.get(key)) for key in columns] for row in rows)]
        self.blocks.append(Table(caption, cells))

    def show(self, console: Console) -> None:
        """On a terminal: what is too wide comes in parts, each with the first column."""
        for block in self.blocks:
            console.line()
            if isinstance(block, str):
                console.prose(block.removeprefix("# "))
                continue
            console.prose(block.caption)
            for part in column_parts(block.cells, console.width):
                console.line()
                header, *rows = part
                console.table(header, rows, right=header[1:])

    def markdown(self) -> str:
        """The same for a file."""
        return "\n\n".join(_markdown(block) for block in self.blocks) + "\n"


def column_parts(cells: list[list[str]], width: int | None) -> list[list[list[str]]]:
    """Tables of as many columns as fit side by side, at least two; the first one in each."""
    widths = [max(map(len, column)) + len(GAP) for column in zip(*cells, strict=True)]
    parts: list[list[int]] = [[]]
    for column in range(1, len(widths)):
        taken = widths[0] + sum(widths[i] for i in parts[-1]) - len(GAP)
        if width is not None and parts[-1] and taken + widths[column] > width:
            parts.append([])
        parts[-1].append(column)
    return [[[line[0], *(line[i] for i in part)] for line in cells] for part in parts]


def _markdown(block: str | Table) -> str:
    if isinstance(block, str):
        return block
    header, *rows = ["| " + " | ".join(map(_escaped, line)) + " |" for line in block.cells]
    marks = "|".join(["---", *["---:"] * (len(block.cells[0]) - 1)])
    return "\n".join([block.caption, "", header, f"|{marks}|", *rows])


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def show(value: Any) -> str:
    """A cell; "-" where nothing was measured."""
    return "-" if value is None else str(value)
