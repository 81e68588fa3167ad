"""`millrace models`: fetch, register, list, remove and size up models."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from millrace.config.home import Home, millrace_home
from millrace.core.errors import MillraceError, UnknownModel
from millrace.hub.add import add_model
from millrace.hub.byte_size import format_bytes, parse_memory
from millrace.hub.catalog import DEFAULT_ALIAS, looks_like_path, resolve_model
from millrace.hub.entry import ModelEntry
from millrace.hub.fit import check_fit
from millrace.hub.outline import remote_entry
from millrace.hub.progress import say
from millrace.hub.pull import pull_model
from millrace.hub.servable import check_entry

from .console import Console
from .exit_status import EXIT_INTERRUPTED
from .model_list import list_available, list_models
from .model_removal import clean, remove

_INTERRUPTED = {
    "pull": "interrupted; what was fetched so far is kept, the same command goes on from there",
    "add": "interrupted; nothing was added",
    "list": "interrupted",
    "available": "interrupted",
    "remove": "interrupted; `models clean` deletes what is left",
    "clean": "interrupted; the same command goes on from there",
    "fit": "interrupted",
}


def add_parser(subparsers: Any) -> None:
    """Add the `models` verb and its own verbs."""
    parser = subparsers.add_parser("models", help="fetch, register, list, remove, size up models")
    _add_verbs(parser)


def _add_verbs(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="models_verb", required=True, metavar="VERB")
    pull = verbs.add_parser("pull", help="fetch a model: smollm2, or ORG/NAME from the hub")
    pull.add_argument(
        "model", nargs="?", default=DEFAULT_ALIAS, help="smollm2 or ORG/NAME; default: %(default)s"
    )
    pull.add_argument("--name", default="", help="serve it under this name; default: its own")
    pull.add_argument(
        "--revision", default="main", help="branch, tag or commit on the hub; default: %(default)s"
    )
    pull.add_argument(
        "--no-wait",
        action="store_true",
        help="fail if another process is fetching it; default: wait for it",
    )
    add = verbs.add_parser("add", help="register a local folder, or import a GGUF file")
    add.add_argument("path", type=Path, help="a folder with config.json, or a GGUF file")
    add.add_argument("--name", default="", help="serve it under this name; default: that of PATH")
    add.add_argument(
        "--alias", action="append", default=[], help="a second name; repeatable; default: none"
    )
    listing = verbs.add_parser("list", help="show the models on this machine")
    _add_json(listing)
    available = verbs.add_parser("available", help="show some models to fetch, tested ones")
    _add_json(available)
    remove = verbs.add_parser("remove", help="forget a model, delete its files and packed weights")
    remove.add_argument("model", help="name or alias, as `models list` shows it")
    remove.add_argument("--yes", action="store_true", help="do not ask")
    remove.add_argument("--force", action="store_true", help="even while it is served")
    clean = verbs.add_parser("clean", help="delete packed weights and downloads of no model in use")
    clean.add_argument("--yes", action="store_true", help="do not ask")
    clean.add_argument("--json", action="store_true", help="list only, for machines")
    fit = verbs.add_parser("fit", help="how much memory a model needs")
    fit.add_argument("model", help="name or folder, or ORG/NAME of the hub, which is not fetched")
    fit.add_argument("--memory", help="such as 24GB; default: what is available here")
    fit.add_argument(
        "--max-model-len",
        type=int,
        default=0,
        help="longest sequence, in tokens; default: the model's own",
    )
    _add_json(fit)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for machines; default: for people")


def run(args: argparse.Namespace) -> int:
    """Run the verb that `args` name. Returns the exit status; errors are the caller's to print."""
    home = millrace_home()
    verbs = {
        "pull": _pull,
        "add": _add,
        "list": _list,
        "available": _available,
        "remove": remove,
        "clean": clean,
        "fit": _fit,
    }
    try:
        return verbs[args.models_verb](args, home)
    except KeyboardInterrupt:
        # The line of a bar that was being drawn ends here.
        end = "\n" if sys.stderr.isatty() else ""
        print(f"{end}millrace: {_INTERRUPTED[args.models_verb]}", file=sys.stderr)
        return EXIT_INTERRUPTED


def main(argv: Sequence[str] | None = None) -> int:
    """The verbs on their own, without the rest of the command."""
    parser = argparse.ArgumentParser(prog="millrace models")
    _add_verbs(parser)
    try:
        return run(parser.parse_args(argv))
    except MillraceError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return 1


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
    console.line(f"{names}: {format_bytes(entry.size_bytes)} in {entry.path}, {entry.route}")


def _list(args: argparse.Namespace, home: Home) -> int:
    return list_models(home, as_json=args.json)


def _available(args: argparse.Namespace, home: Home) -> int:
    return list_available(as_json=args.json)


def _fit(args: argparse.Namespace, home: Home) -> int:
    console = Console()
    memory_bytes = parse_memory(args.memory) if args.memory is not None else 0
    with _entry_to_fit(args.model, home) as entry:
        report = check_fit(entry, memory_bytes, max_model_len=args.max_model_len)
    if args.json:
        console.json(report.to_json())
    else:
        console.line(report.title)
        console.table(report.header, report.cells(), right=report.header[1:])
        for note in (*report.notes(), *filter(None, [report.suggestion])):
            console.prose(note)
    return 0 if report.fits else 1


@contextmanager
def _entry_to_fit(model: str, home: Home) -> Iterator[ModelEntry]:
    """A model that can be served; one of the hub need not be here."""
    try:
        entry = resolve_model(model, home)
    except UnknownModel:
        if looks_like_path(model) or "/" not in model:
            raise
    else:
        check_entry(entry, home)
        yield entry
        return
    say(f"reading what the hub has of {model}; its weights are not fetched")
    with remote_entry(model) as remote:
        yield remote
