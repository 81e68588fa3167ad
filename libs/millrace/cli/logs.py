"""`millrace logs`: what the processes printed, from their log files, in order of time."""

from __future__ import annotations

import argparse
import heapq
import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from millrace.config.home import millrace_home
from millrace.core.errors import Unavailable
from millrace.telemetry.log_line import time_of

from .console import Console
from .count import positive_count
from .stack.log_file import START_MARK, lines_of
from .stack.stack_view import OWN_NAME

_POLL_S = 0.2
# What the terminal of a background start would have shown; its lines are in the others too.
_TRANSCRIPT = "up"
_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser("logs", help="show what the services logged")
    parser.add_argument("service", nargs="?", help="one process, such as worker-2; default: all")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with new lines")
    parser.add_argument(
        "-n", "--lines", type=positive_count, default=50, help="how many of each; default: 50"
    )
    parser.add_argument(
        "--since",
        type=parse_since,
        metavar="TIME",
        help="from then on, as 90s, 10m, 2h, 3d or 2026-03-01T09:30; default: the current run",
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
    else:
        paths = [path for path in paths if path.stem != _TRANSCRIPT]
    since_s = _run_began_s(folder) if args.since is None else args.since
    is_alone = len(paths) == 1
    with ExitStack() as stack:
        tails = [stack.enter_context(closing(Tail(path))) for path in paths]
        for path, line in merged(paths, since_s, args.lines):
            console.line(_prefixed(console, path, line, is_alone=is_alone))
        if args.follow:
            _follow(console, tails)
    return 0


def parse_since(text: str) -> float:
    """Unix time of `10m` ago, or of a date in ISO 8601, local unless it names a zone."""
    if found := _AGO.fullmatch(text.strip()):
        return time.time() - float(found[1]) * _SECONDS[found[2]]
    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except ValueError:
        message = f"{text!r} is neither 90s, 10m, 2h or 3d nor a time like 2026-03-01T09:30"
        raise argparse.ArgumentTypeError(message) from None


def merged(paths: Iterable[Path], since_s: float, num_lines: int) -> Iterator[tuple[Path, str]]:
    """The last `num_lines` of each log from a time on, all together in order of time."""
    parts = [deque(_since(path, since_s), maxlen=num_lines) for path in paths]
    return ((path, line) for _, _, path, line in heapq.merge(*parts))


def _since(path: Path, since_s: float) -> Iterator[tuple[float, int, Path, str]]:
    """Lines with their time and number; one without a time is as old as the one before it."""
    at_s = 0.0
    for number, line in enumerate(lines_of(path)):
        at_s = max(at_s, time_of(line) or 0.0)
        if at_s >= since_s:
            yield at_s, number, path, line


def _run_began_s(folder: Path) -> float:
    """When the stack was started last; 0 if that is not known."""
    own = lines_of(folder / f"{OWN_NAME}.log")
    starts = [time_of(line) for line in own if START_MARK in line]
    return (starts[-1] if starts else None) or 0.0


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
    # A line in JSON names its process itself, and stays whole for whoever reads it.
    if is_alone or line.startswith("{"):
        return line
    return f"{console.paint(path.stem.ljust(9) + ' |', 'cyan')} {line}"
