"""A bounded log file: two files of at most half the bound each.

Writing never fails: a service must not stall because the disk for its log is full.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import IO

MAX_BYTES = 8 << 20


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


def last_lines(path: Path, num_lines: int) -> list[str]:
    """The end of a log file; empty where there is none."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        return [line.rstrip("\n") for line in deque(file, maxlen=num_lines)]
