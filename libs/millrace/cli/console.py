"""What the command shows: colours on a terminal only, tables for people, JSON for machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

from millrace.config.environment import current_environment

from .streams import is_utf8

COLOURS = {
    "red": "31",
    "green": "32",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
    "grey": "90",
    "bold": "1",
}


class Console:
    """Writes to one stream. Colours need a terminal and no NO_COLOR."""

    def __init__(
        self, stream: IO[str] | None = None, *, environ: Mapping[str, str] | None = None
    ) -> None:
        environ = current_environment() if environ is None else environ
        self._stream = sys.stdout if stream is None else stream
        is_plain = bool(environ.get("NO_COLOR")) or environ.get("TERM") == "dumb"
        self.has_colours = self._stream.isatty() and not is_plain

    def paint(self, text: str, colour: str) -> str:
        """`text` in `colour`, or unchanged."""
        return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m" if self.has_colours else text

    def line(self, text: str = "") -> None:
        """Writes one line now."""
        self._stream.write(text + "\n")
        self._stream.flush()

    def write(self, text: str) -> None:
        """Writes a piece of a line now."""
        self._stream.write(text)
        self._stream.flush()

    def json(self, document: Any) -> None:
        """Writes one JSON document; escaped if the stream lacks letters, so that it stays JSON."""
        self.line(as_json(document, self._stream, indent=2))

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Writes rows under a header, columns as wide as they need to be."""
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
        for index, row in enumerate((header, *rows)):
            text = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self.line(self.paint(text.rstrip(), "bold") if index == 0 else text.rstrip())


def as_json(document: Any, stream: IO[str], indent: int | None = None) -> str:
    """The document for `stream`."""
    is_escaped = not is_utf8(stream)
    return json.dumps(document, indent=indent, ensure_ascii=is_escaped, allow_nan=False)


def format_duration(seconds: float) -> str:
    """As `12s`, `3m04s` or `5h02m`."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
