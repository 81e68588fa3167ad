"""A terminal in memory."""

from __future__ import annotations

import io


class Terminal(io.StringIO):
    """Says that it is one; how wide it is stands in COLUMNS."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True
