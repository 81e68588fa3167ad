"""What the command shows: colours on a terminal only, tables for people, JSON for machines."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import IO, Any

from millrace.config.environment import current_environment
from millrace.core.table import table_lines

from .streams import is_utf8

UNKNOWN_WIDTH = 80
MIN_PROSE_WIDTH = 30
CUT_MARK = "…"

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
        self._environ = environ
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

    @property
    def width(self) -> int | None:
        """Columns of the terminal, COLUMNS before what it says itself; None if it is none."""
        if not self._stream.isatty():
            return None
        given = self._environ.get("COLUMNS", "")
        if given.isdecimal() and int(given):
            return int(given)
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or UNKNOWN_WIDTH
        except (OSError, ValueError):
            return UNKNOWN_WIDTH

    def table(
        self,
        header: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        right: Sequence[str] = (),
    ) -> None:
        """Writes rows under a header, fitted to the terminal; `right` names columns of numbers."""
        mark = CUT_MARK if is_utf8(self._stream) else "..."
        lines = table_lines(header, rows, self.width, right=right, cut_mark=mark)
        for index, text in enumerate(lines):
            self.line(self.paint(text, "bold") if index == 0 else text)

    def prose(
        self, text: str, *, indent: str = "", colour: str = "", indent_colour: str = ""
    ) -> None:
        """Writes a text, on a terminal over as many lines as it needs, behind `indent`."""
        lines = [indent + text]
        if self.width is not None:
            lines = textwrap.wrap(
                text,
                max(self.width, MIN_PROSE_WIDTH),
                initial_indent=indent,
                subsequent_indent=" " * len(indent),
                break_long_words=False,
                break_on_hyphens=False,
            )
        if indent_colour:
            lines[0] = self.paint(indent, indent_colour) + lines[0].removeprefix(indent)
        for line in lines:
            self.line(self.paint(line, colour) if colour else line)


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
