"""`millrace logs`: what the processes printed, from their log files."""

from __future__ import annotations

import argparse
import os
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import IO, Any

from millrace.config.home import millrace_home
from millrace.core.errors import Unavailable

from .console import Console
from .count import positive_count
from .stack.log_file import last_lines

_POLL_S = 0.2


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser("logs", help="show what the services logged")
    parser.add_argument("service", nargs="?", help="one process only, such as worker or worker-2")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with new lines")
    parser.add_argument(
        "-n", "--lines", type=positive_count, default=50, help="of each; default 50"
    )


def run(args: argparse.Namespace) -> int:
    """Shows the last lines, then new ones until Ctrl-C."""
    folder, console = millrace_home().logs, Console()
    paths = sorted(folder.glob("*.log")) if folder.is_dir() else []
    if args.service:
        known = ", ".join(path.stem for path in paths) or "none"
        paths = [path for path in paths if path.stem == args.service]
        if not paths:
            raise Unavailable(f"no log of {args.service} in {folder}; there are: {known}")
    with ExitStack() as stack:
        tails = [stack.enter_context(closing(Tail(path))) for path in paths]
        for path in paths:
            for line in last_lines(path, args.lines):
                console.line(_prefixed(console, path, line, is_alone=len(paths) == 1))
        if args.follow:
            _follow(console, tails)
    return 0


class Tail:
    """Lines appended to a file from now on, also after it was replaced by a new one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] = path.open(encoding="utf-8", errors="replace")
        self._file.seek(0, 2)

    def new_lines(self) -> list[str]:
        """Complete lines since the last call."""
        lines = self._take()
        if self.path.is_file() and self.path.stat().st_ino != _inode(self._file):
            self._file.close()
            self._file = self.path.open(encoding="utf-8", errors="replace")
            lines += self._take()
        return lines

    def close(self) -> None:
        """Ends reading."""
        self._file.close()

    def _take(self) -> list[str]:
        lines: list[str] = []
        while True:
            at = self._file.tell()
            line = self._file.readline()
            if not line.endswith("\n"):
                self._file.seek(at)
                return lines
            lines.append(line.rstrip("\n"))


def _inode(file: IO[str]) -> int:
    return os.fstat(file.fileno()).st_ino


def _follow(console: Console, tails: list[Tail]) -> None:
    while True:
        for tail in tails:
            for line in tail.new_lines():
                console.line(_prefixed(console, tail.path, line, is_alone=len(tails) == 1))
        time.sleep(_POLL_S)


def _prefixed(console: Console, path: Path, line: str, *, is_alone: bool) -> str:
    return line if is_alone else f"{console.paint(path.stem.ljust(9) + ' |', 'cyan')} {line}"
