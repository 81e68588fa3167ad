"""`millrace models`: fetch, register, list, remove and size up models."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from millrace.config.home import Home, millrace_home
from millrace.core.errors import MillraceError
from millrace.engine.default_sampling import default_sampling
from millrace.engine.generation_config import read_generation_config
from millrace.hub.add import add_model
from millrace.hub.byte_size import format_bytes, parse_memory
from millrace.hub.catalog import (
    DEFAULT_ALIAS,
    find_manifest,
    manifests,
    pull_command,
    resolve_model,
)
from millrace.hub.entry import ModelEntry, entry_of
from millrace.hub.fit import check_fit
from millrace.hub.manifest import Manifest
from millrace.hub.pull import pull_model
from millrace.hub.remove import remove_model

from .console import Console

_INTERRUPTED = 130


def add_parser(subparsers: Any) -> None:
    """Add the `models` verb and its own verbs."""
    parser = subparsers.add_parser("models", help="fetch, register, list, remove, size up models")
    _add_verbs(parser)


def _add_verbs(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="models_verb", required=True, metavar="VERB")
    pull = verbs.add_parser("pull", help="fetch a model: smollm2, or ORG/NAME from the hub")
    pull.add_argument(
        "model", nargs="?", default=DEFAULT_ALIAS, help=f"its name; default: {DEFAULT_ALIAS}"
    )
    pull.add_argument("--name", default="", help="serve it under this name; default: its own")
    pull.add_argument(
        "--revision", default="main", help="branch, tag or commit on the hub; default: main"
    )
    pull.add_argument(
        "--no-wait", action="store_true", help="fail where another process is fetching it"
    )
    add = verbs.add_parser("add", help="register a local folder, or import a .gguf file")
    add.add_argument("path", type=Path, help="of the folder or file")
    add.add_argument(
        "--name", default="", help="serve it under this name; default: that of the file"
    )
    add.add_argument(
        "--alias", action="append", default=[], help="a second name, repeatable; default: none"
    )
    listing = verbs.add_parser("list", help="show the models on this machine")
    listing.add_argument("--json", action="store_true", help="for machines")
    remove = verbs.add_parser("remove", help="forget a model and delete its files")
    remove.add_argument("model", help="its name or alias")
    remove.add_argument("--yes", action="store_true", help="do not ask")
    fit = verbs.add_parser("fit", help="how much memory a model needs")
    fit.add_argument("model", help="its name or alias")
    fit.add_argument("--memory", help="such as 24GB; default: available here")
    fit.add_argument(
        "--max-model-len",
        type=int,
        default=0,
        help="longest sequence, in tokens; default: the model's own",
    )
    fit.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    """Run the verb that `args` name. Returns the exit status; errors are the caller's to print."""
    home = millrace_home()
    verbs = {"pull": _pull, "add": _add, "list": _list, "remove": _remove, "fit": _fit}
    return verbs[args.models_verb](args, home)


def main(argv: Sequence[str] | None = None) -> int:
    """The verbs on their own, without the rest of the command."""
    parser = argparse.ArgumentParser(prog="millrace models")
    _add_verbs(parser)
    try:
        return run(parser.parse_args(argv))
    except MillraceError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was fetched so far is kept", file=sys.stderr)
        return _INTERRUPTED


def _pull(args: argparse.Namespace, home: Home) -> int:
    entry = pull_model(
        args.model,
        home,
        name=args.name,
        hub_revision=args.revision,
        wait_s=0.0 if args.no_wait else None,
        stream=sys.stderr,
    )
    _tell_ready(entry)
    return 0


def _add(args: argparse.Namespace, home: Home) -> int:
    entry = add_model(args.path, home, name=args.name, aliases=tuple(args.alias), stream=sys.stderr)
    _tell_ready(entry)
    return 0


def _tell_ready(entry: ModelEntry) -> None:
    console = Console()
    names = ", ".join((entry.name, *entry.aliases))
    console.line(f"{names}: {format_bytes(entry.size_bytes)} in {entry.path}")
    if entry.refusal:
        console.line(f"but it cannot be served: {entry.refusal}")


def _list(args: argparse.Namespace, home: Home) -> int:
    console = Console()
    rows = [_listed(manifest, folder) for manifest, folder in manifests(home)]
    if args.json:
        console.json(rows)
    elif not rows:
        console.line(f"no models yet; fetch the default one: {pull_command(DEFAULT_ALIAS)}")
    else:
        console.table(
            ("NAME", "ALIASES", "SIZE", "LICENCE", "MAX LEN", "SAMPLING", "ROUTE"),
            [
                (
                    row["name"],
                    ", ".join(row["aliases"]) or "-",
                    format_bytes(row["size_bytes"]),
                    row["license"],
                    str(row["max_model_len"] or "-"),
                    _sampling(row["default_sampling"]),
                    f"{row['route']}: {row['refusal']}" if row["refusal"] else row["route"],
                )
                for row in rows
            ],
        )
    return 0


def _listed(manifest: Manifest, folder: Path) -> dict[str, Any]:
    """One line of the list; a broken entry is shown as refused, so that it can be removed."""
    row: dict[str, Any] = {
        "name": manifest.name,
        "aliases": list(manifest.aliases),
        "source": manifest.source,
        "license": manifest.license,
        "size_bytes": manifest.size_bytes,
        "path": manifest.folder or str(folder),
        "revision": manifest.revision,
        "architecture": "",
        "route": "refused",
        "refusal": "",
        "max_model_len": 0,
        "default_sampling": {},
    }
    try:
        entry = entry_of(manifest, folder)
        defaults = default_sampling(read_generation_config(entry.path))
    except MillraceError as error:
        return row | {"refusal": error.message}
    return row | {
        "revision": entry.revision,
        "architecture": entry.architecture,
        "route": entry.route,
        "refusal": entry.refusal,
        "max_model_len": entry.max_model_len,
        "default_sampling": defaults.given(),
    }


def _sampling(defaults: dict[str, float]) -> str:
    """What holds if a request is silent, as far as the model has a wish."""
    return ", ".join(f"{name} {value:g}" for name, value in defaults.items()) or "-"


def _remove(args: argparse.Namespace, home: Home) -> int:
    console = Console()
    found = find_manifest(args.model, home)
    if found is not None and not args.yes and not _confirms(found[0]):
        console.line("nothing removed")
        return 1
    freed = remove_model(args.model, home)
    console.line(f"removed {args.model}, {format_bytes(freed)} freed")
    return 0


def _confirms(manifest: Manifest) -> bool:
    if manifest.folder:
        what = f"forget {manifest.name} (its folder {manifest.folder} stays)"
    else:
        what = f"delete {manifest.name}, {format_bytes(manifest.size_bytes)}"
    if not sys.stdin.isatty():
        print(f"to {what} without a terminal, add --yes", file=sys.stderr)
        return False
    return input(f"{what}? [y/N] ").strip().lower() in ("y", "yes")


def _fit(args: argparse.Namespace, home: Home) -> int:
    console = Console()
    memory_bytes = parse_memory(args.memory) if args.memory is not None else 0
    report = check_fit(
        resolve_model(args.model, home), memory_bytes, max_model_len=args.max_model_len
    )
    if args.json:
        console.json(report.to_json())
    else:
        console.line(report.title)
        console.table(report.header, report.cells(), right=report.header[1:])
        for note in (*report.notes(), *filter(None, [report.suggestion])):
            console.prose(note)
    return 0 if report.fits else 1
