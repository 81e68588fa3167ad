"""`millrace trace`: a request's waterfall, and what made it slow."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from millrace.config.environment import current_environment
from millrace.config.home import millrace_home
from millrace.core.errors import RequestNotFound
from millrace.telemetry.diagnosis import diagnose, format_s
from millrace.telemetry.store import STORE_FILE, RequestSummary, RequestTrace, TraceStore
from millrace.telemetry.waterfall import draw

from .console import Console
from .console import as_json as to_json
from .count import positive_count
from .stack.run_file import running_stack
from .stack.tracing import COLLECTOR

DEFAULT_SLOWEST = 10
PLAIN_WIDTH = 120
# Services send their spans once a second; a root can come before its children.
SETTLE_S = 1.5
APPEAR_S = 2.5
FOLLOW_S = 0.5


def add_parser(subparsers: Any) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser("trace", help="show where the time of a request went")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("id", nargs="?", help="request id or trace id, or its first 6 digits or more")
    what.add_argument(
        "--slowest",
        nargs="?",
        type=positive_count,
        const=DEFAULT_SLOWEST,
        metavar="N",
        help=f"list the N slowest requests (default {DEFAULT_SLOWEST})",
    )
    what.add_argument("--last", action="store_true", help="the request that ended last (default)")
    what.add_argument("--follow", action="store_true", help="one line per request as they end")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; the exit status. Raises MillraceError where there is nothing to show."""
    store = TraceStore(store_path())
    try:
        return _run(args, store)
    finally:
        store.close()


def store_path() -> Path:
    """Where the stack's collector keeps its spans."""
    return millrace_home().run / STORE_FILE


def _run(args: argparse.Namespace, store: TraceStore) -> int:
    if args.follow:
        # Ctrl-C is how one stops following.
        with contextlib.suppress(KeyboardInterrupt):
            _follow(store, as_json=args.json)
        return 0
    if args.slowest:
        _list(store, store.slowest(args.slowest), as_json=args.json)
        return 0
    request = _find_patiently(store, args.id) if args.id else _last(store)
    _settle(request)
    trace = store.load(request)
    if args.json:
        Console().json(describe(request, trace))
        return 0
    width, is_unicode = terminal(sys.stdout)
    diagnosis = diagnose(trace.spans, trace.steps)
    _print("\n".join(draw(trace, diagnosis, width=width, is_unicode=is_unicode)))
    return 0


def describe(request: RequestSummary, trace: RequestTrace) -> dict[str, Any]:
    """The document that `--json` prints."""
    diagnosis = diagnose(trace.spans, trace.steps)
    return {
        "request_id": request.request_id,
        "trace_id": request.trace_id,
        "name": request.name,
        "status": request.status,
        "start_unix_ns": request.start_ns,
        "duration_s": request.duration_s,
        "diagnosis": asdict(diagnosis),
        "spans": [asdict(span) for span in trace.spans],
        "steps": [asdict(step) for step in trace.steps],
    }


def terminal(stream: TextIO) -> tuple[int, bool]:
    """Width in cells, and whether block characters can be drawn there."""
    if not stream.isatty():
        return PLAIN_WIDTH, False
    environ = current_environment()
    named = environ.get("LC_ALL") or environ.get("LC_CTYPE") or environ.get("LANG") or "C"
    is_utf8 = (stream.encoding or "").lower().replace("-", "") == "utf8"
    width = shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns
    return width, is_utf8 and named not in ("C", "POSIX")


def _last(store: TraceStore) -> RequestSummary:
    record = running_stack(millrace_home())
    if record is not None and all(item.name != COLLECTOR for item in record.processes):
        raise RequestNotFound(
            "the running stack keeps no traces here (--no-telemetry, OTEL_TRACES_EXPORTER or "
            "OTEL_SDK_DISABLED); those of earlier runs: millrace trace --slowest, millrace trace ID"
        )
    found = store.latest(1)
    if not found:
        raise RequestNotFound("no request has been traced yet")
    return found[0]


def _find_patiently(store: TraceStore, prefix: str) -> RequestSummary:
    """A request that has just ended may still be on its way to the store."""
    deadline = time.monotonic() + APPEAR_S
    while True:
        try:
            return store.find(prefix)
        except RequestNotFound:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


def _settle(request: RequestSummary) -> None:
    time.sleep(max(0.0, min(SETTLE_S, SETTLE_S - (time.time() - request.arrived_ns / 1e9))))


def _list(store: TraceStore, requests: Iterable[RequestSummary], *, as_json: bool) -> None:
    documents = []
    for request in requests:
        try:
            trace = store.load(request)
        except RequestNotFound:
            continue  # evicted between the two reads
        if as_json:
            documents.append(_short_document(request, trace))
        else:
            _print(_line(request, trace))
    if as_json:
        Console().json(documents)


def _follow(store: TraceStore, *, as_json: bool) -> None:
    newest = store.latest(1)
    seq = newest[0].seq if newest else 0
    while True:
        settled_ns = time.time_ns() - int(SETTLE_S * 1e9)
        for request in store.after(seq, arrived_before_ns=settled_ns):
            seq = request.seq
            try:
                trace = store.load(request)
            except RequestNotFound:
                continue  # evicted between the two reads
            if as_json:
                _print(to_json(_short_document(request, trace), sys.stdout))
            else:
                _print(_line(request, trace))
        time.sleep(FOLLOW_S)


def _short_document(request: RequestSummary, trace: RequestTrace) -> dict[str, Any]:
    document = describe(request, trace)
    del document["spans"], document["steps"]
    return document


def _line(request: RequestSummary, trace: RequestTrace) -> str:
    clock = time.strftime("%H:%M:%S", time.localtime(request.start_ns / 1e9))
    shown = request.request_id or request.trace_id
    sentence = diagnose(trace.spans, trace.steps).sentence
    return f"{clock}  {shown[:12]}  {format_s(request.duration_s):>9}  {request.name}  {sentence}"


def _print(text: str) -> None:
    print(text, flush=True)
