"""Progress of long work: one redrawn line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TextIO

from .byte_size import format_bytes

_REDRAW_S = 0.1
_LINE_EVERY = 0.25
_BAR_WIDTH = 30


@dataclass
class Progress:
    """One piece of work with a known total in bytes; without a stream it stays silent."""

    label: str
    total: int
    stream: TextIO | None = None
    done: int = 0
    _started_s: float = field(default_factory=time.monotonic)
    _drawn_s: float = 0.0
    _next_line: float = _LINE_EVERY

    def advance(self, amount: int) -> None:
        """Count `amount` more as done."""
        self.done += amount
        if self.stream is None:
            return
        if self.stream.isatty():
            now = time.monotonic()
            if now - self._drawn_s >= _REDRAW_S or self.done >= self.total:
                self._drawn_s = now
                self._redraw()
        elif self.total and self._next_line < 1.0 and self.done / self.total >= self._next_line:
            self._next_line = (self.done / self.total // _LINE_EVERY + 1) * _LINE_EVERY
            print(f"{self.label}: {self._amount()}", file=self.stream, flush=True)

    def finish(self) -> None:
        """Close the line."""
        if self.stream is None:
            return
        seconds = time.monotonic() - self._started_s
        if self.stream.isatty():
            self._redraw()
            self.stream.write("\n")
        else:
            print(f"{self.label}: done in {seconds:.1f} s", file=self.stream)
        self.stream.flush()

    def _amount(self) -> str:
        percent = 100 * self.done / self.total if self.total else 100.0
        return f"{percent:3.0f} % of {format_bytes(self.total)}"

    def _redraw(self) -> None:
        assert self.stream is not None
        share = min(1.0, self.done / self.total) if self.total else 1.0
        filled = round(share * _BAR_WIDTH)
        bar = "#" * filled + "." * (_BAR_WIDTH - filled)
        self.stream.write(f"\r{self.label} [{bar}] {self._amount()}\x1b[K")
        self.stream.flush()


def say(message: str, stream: TextIO | None = None) -> None:
    """One plain line for the person who waits, on stderr unless told otherwise."""
    print(message, file=stream or sys.stderr, flush=True)
