"""`millrace models remove` and `clean`: what a model takes, and what no model needs any more."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from millrace.config.environment import current_environment
from millrace.config.home import Home
from millrace.core.errors import Conflict
from millrace.core.own_command import own_command
from millrace.hub.byte_size import format_bytes
from millrace.hub.leftovers import Leftover, delete_leftovers, find_leftovers
from millrace.hub.manifest import Manifest, folder_name
from millrace.hub.remove import Removal, plan_removal, remove_model

from .confirmation import is_confirmed
from .console import Console
from .stack.engine_settings import weight_kinds
from .stack.run_file import running_stack


def remove(args: argparse.Namespace, home: Home) -> int:
    """Asks, then removes one model and what was made of it. Returns the exit status."""
    console = Console()
    removal = plan_removal(args.model, home)
    if not args.force and removal.manifest is not None:
        _check_no_stack_serves(removal.manifest, home)
    if not args.yes and not is_confirmed(f"{_description(args.model, removal)}?"):
        console.line("nothing removed")
        return 1
    freed = remove_model(args.model, home, force=args.force)
    console.line(f"removed {args.model}, {format_bytes(freed)} freed")
    return 0


def clean(args: argparse.Namespace, home: Home) -> int:
    """Lists what may go, asks, removes it. Returns the exit status."""
    console, environ = Console(), current_environment()

    def kinds_of(manifest: Manifest, folder: Path) -> frozenset[str]:
        return weight_kinds(folder, manifest.name, environ, home)

    leftovers = find_leftovers(home, kinds_of)
    if args.json and not args.yes:
        console.json(_report(leftovers, freed=0))
        return 0
    if not leftovers:
        console.json(_report([], freed=0)) if args.json else console.line("nothing to clean")
        return 0
    if not args.json:
        for each in leftovers:
            console.line(f"{format_bytes(each.num_bytes):>10}  {each.path}  ({each.reason})")
    if not args.yes and not is_confirmed("Remove all of this?"):
        console.line("nothing removed")
        return 1
    freed = delete_leftovers(home, leftovers)
    if args.json:
        console.json(_report(leftovers, freed=freed))
    else:
        console.line(f"removed, {format_bytes(freed)} freed")
    return 0


def _report(leftovers: list[Leftover], *, freed: int) -> dict[str, Any]:
    items = [
        {"path": str(each.path), "bytes": each.num_bytes, "reason": each.reason}
        for each in leftovers
    ]
    return {"items": items, "freed_bytes": freed}


def _check_no_stack_serves(manifest: Manifest, home: Home) -> None:
    """Between two starts of its worker too, when no process has the model open."""
    stack = running_stack(home)
    if stack is not None and stack.model in (manifest.name, folder_name(manifest.name)):
        raise Conflict(
            f"{manifest.name} is served by the running stack (pid {stack.pid}); first: "
            f"{own_command('down')}, or remove the model all the same: --force"
        )


def _description(model: str, removal: Removal) -> str:
    if removal.manifest is None:
        what = f"delete what was fetched of {model}"
    elif removal.manifest.folder:
        what = f"forget {removal.manifest.name} (its folder {removal.manifest.folder} stays)"
    else:
        what = f"delete {removal.manifest.name}"
    return f"{what}, {format_bytes(removal.num_bytes)} to be freed"
