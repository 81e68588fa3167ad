"""`millrace uninstall`: removes everything under MILLRACE_HOME."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from millrace.config.home import Home, millrace_home
from millrace.core.errors import Conflict
from millrace.core.own_command import own_command
from millrace.engine.served import who_serves
from millrace.hub.byte_size import format_bytes
from millrace.hub.disk_use import bytes_under, delete
from millrace.hub.model_cache import old_cache
from millrace.telemetry.tracing_ui import FOLDER_NAME, ui_folder

from .confirmation import is_confirmed
from .console import Console
from .stack.run_file import end_leftovers, running_stack, stack_lock

# What this program makes; a folder with anything else in it is not removed as a whole.
OWN_NAMES = ("models", "run", "logs", "cache", "bin", "data", FOLDER_NAME, "config.toml")
OLD_CACHE_NAMES = ("kernels", "weights")


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
    _check_no_worker(home)
    if not items:
        console.json(_report(home, items, is_removed=True)) if args.json else console.line(
            f"nothing is kept in {home.root}"
        )
        return 0
    if not args.json:
        for path, num_bytes in items:
            console.line(f"{format_bytes(num_bytes):>10}  {path}")
    if not args.yes and not is_confirmed("Remove all of this?"):
        console.line("nothing removed")
        return 1
    _remove(home, items)
    if args.json:
        console.json(_report(home, items, is_removed=True))
    else:
        console.line("removed; the program goes with its virtual environment (.venv)")
    return 0


def _check_no_worker(home: Home) -> None:
    """One may have been started without a stack."""
    for folder in home.models.iterdir() if home.models.is_dir() else ():
        if who := who_serves(folder):
            raise Conflict(f"{folder.name} is served by {who}; stop it first")


def _items(home: Home) -> list[tuple[Path, int]]:
    found = [home.root / name for name in OWN_NAMES if (home.root / name).exists()]
    if old := old_cache():
        found += [old / name for name in OLD_CACHE_NAMES if (old / name).exists()]
    return [(path, bytes_under(path)) for path in found]


def _remove(home: Home, items: list[tuple[Path, int]]) -> None:
    if home.run.is_dir():
        with stack_lock(home):
            end_leftovers(home)
    for path, _ in items:
        delete(path)
    for folder in {home.root, *(path.parent for path, _ in items)}:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _report(home: Home, items: list[tuple[Path, int]], *, is_removed: bool) -> dict[str, Any]:
    listed = [{"path": str(path), "bytes": num_bytes} for path, num_bytes in items]
    return {"home": str(home.root), "items": listed, "is_removed": is_removed}
