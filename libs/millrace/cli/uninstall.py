"""`millrace uninstall`: removes everything under MILLRACE_HOME."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from millrace.config.home import Home, millrace_home
from millrace.core.errors import Conflict, InvalidRequest
from millrace.core.own_command import own_command
from millrace.hub.byte_size import format_bytes
from millrace.telemetry.tracing_ui import FOLDER_NAME, ui_folder

from .console import Console
from .stack.run_file import end_leftovers, running_stack, stack_lock

# What this program makes; a folder with anything else in it is not removed as a whole.
OWN_NAMES = ("models", "run", "logs", "cache", "bin", "data", FOLDER_NAME, "config.toml")


def add_parser(subparsers: Any) -> None:
    """Adds the verb."""
    parser = subparsers.add_parser(
        "uninstall", help="remove everything that Millrace keeps on this machine"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--json", action="store_true", help="list only, for machines")


def run(args: argparse.Namespace) -> int:
    """Lists, asks, removes. The program itself goes with its virtual environment."""
    home, console = millrace_home(), Console()
    items = _items(home)
    if args.json and not args.yes:
        console.json(_report(home, items, is_removed=False))
        return 0
    if record := running_stack(home):
        raise Conflict(
            f"a stack is running (pid {record.pid}); stop it first: {own_command('down')}"
        )
    if ui := ui_folder(home).running():
        raise Conflict(
            f"a tracing UI is running (pid {ui.pid}); stop it first: "
            f"{own_command('trace-ui --stop')}"
        )
    if not items:
        console.json(_report(home, items, is_removed=True)) if args.json else console.line(
            f"nothing is kept in {home.root}"
        )
        return 0
    if not args.json:
        for path, num_bytes in items:
            console.line(f"{format_bytes(num_bytes):>10}  {path}")
    if not args.yes and not _is_confirmed():
        console.line("nothing removed")
        return 1
    _remove(home, items)
    if args.json:
        console.json(_report(home, items, is_removed=True))
    else:
        console.line("removed; the program goes with its virtual environment (.venv)")
    return 0


def _items(home: Home) -> list[tuple[Path, int]]:
    found = [home.root / name for name in OWN_NAMES if (home.root / name).exists()]
    return [(path, _size(path)) for path in found]


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


def _is_confirmed() -> bool:
    if not sys.stdin.isatty():
        raise InvalidRequest("nobody to ask here; say --yes to remove all of this")
    return input("Remove all of this? [y/N] ").strip().lower() in ("y", "yes")


def _remove(home: Home, items: list[tuple[Path, int]]) -> None:
    if home.run.is_dir():
        with stack_lock(home):
            end_leftovers(home)
    for path, _ in items:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    if not any(home.root.iterdir()):
        home.root.rmdir()


def _report(home: Home, items: list[tuple[Path, int]], *, is_removed: bool) -> dict[str, Any]:
    listed = [{"path": str(path), "bytes": num_bytes} for path, num_bytes in items]
    return {"home": str(home.root), "items": listed, "is_removed": is_removed}
