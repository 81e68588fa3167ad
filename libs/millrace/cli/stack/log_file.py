"""A bounded log file: two files of at most half the bound each.

Writing never fails: a service must not stall because the disk for its log is full.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from millrace.telemetry.log_line import log_line

MAX_BYTES = 8 << 20
# Stands in every log where a run of the stack begins.
START_MARK = "---- started"


class LogFile:
    """Appends lines; at `max_bytes` the file becomes `<name>.1` and a new one begins."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._max_bytes = max_bytes
        self._file: IO[bytes] = path.open("ab", buffering=0)
        self._num_bytes = self._file.tell()
        self._num_lost = 0

    def write_line(self, line: str) -> None:
        """Appends one line, so that readers see it at once; says later how many were lost."""
        lost = f"---- {self._num_lost} lines were lost here\n" if self._num_lost else ""
        try:
            self._write(f"{lost}{line}\n".encode())
        except OSError:
            self._num_lost += 1
        else:
            self._num_lost = 0

    def _write(self, data: bytes) -> None:
        if self._num_bytes and self._num_bytes + len(data) > self._max_bytes:
            self._file.close()
            self.path.replace(self.path.with_name(self.path.name + ".1"))
            self._file = self.path.open("wb", buffering=0)
            self._num_bytes = 0
        self._file.write(data)
        self._num_bytes += len(data)

    def close(self) -> None:
        """Ends writing."""
        self._file.close()


def begin_log(path: Path) -> LogFile:
    """A log file with the mark of a new run at its end."""
    log = LogFile(path)
    log.write_line(log_line(path.stem, START_MARK))
    return log


def lines_of(path: Path) -> Iterator[str]:
    """Every line of a log, with those before it became `<name>.1`; none if there is none."""
    for part in (path.with_name(path.name + ".1"), path):
        if part.is_file():
            with part.open(encoding="utf-8", errors="replace") as file:
                yield from (line.rstrip("\n") for line in file)


def last_lines(path: Path, num_lines: int) -> list[str]:
    """The end of a log; empty if there is none."""
    return list(deque(lines_of(path), maxlen=num_lines))
