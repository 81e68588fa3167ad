"""`millrace trace`: a request's waterfall, and what made it slow."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import textwrap
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from millrace.config.environment import current_environment
from millrace.config.home import millrace_home
from millrace.core.errors import RequestNotFound
from millrace.core.own_command import own_command
from millrace.telemetry.diagnosis import diagnose
from millrace.telemetry.durations import format_s
from millrace.telemetry.store import STORE_FILE, RequestSummary, RequestTrace, TraceStore
from millrace.telemetry.waterfall import draw

from .console import Console
from .console import as_json as to_json
from .count import positive_count
from .last_request import last_request
from .stack.run_file import running_stack
from .stack.tracing import COLLECTOR

DEFAULT_SLOWEST = 10
PLAIN_WIDTH = 120
# Services send their spans once a second; a root can come before its children.
SETTLE_S = 1.5
APPEAR_S = 2.5
FOLLOW_S = 0.5
POLL_S = 0.1
# The gateway sends its spans once a second: what ended before is there by then.
EXPORT_S = 1.2
# So recently made from this machine's command line, a request is the one that is meant.
FRESH_S = 2.0
MAX_LATE_REQUESTS = 100


def add_parser(subparsers: Any) -> None:
    """Adds the command to the command line."""
    parser = subparsers.add_parser("trace", help="show where the time of a request went")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "id",
        nargs="?",
        help="of a request or trace, or its first 6 digits or more; default: --last",
    )
    what.add_argument(
        "--slowest",
        nargs="?",
        type=positive_count,
        const=DEFAULT_SLOWEST,
        metavar="N",
        help=f"list the N slowest requests; default: {DEFAULT_SLOWEST}",
    )
    what.add_argument(
        "--last",
        action="store_true",
        help="the request that ended last, or that of a `generate` just before; the default",
    )
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
    _show(draw(trace, diagnosis, width=width, is_unicode=is_unicode))
    return 0


def describe(request: RequestSummary, trace: RequestTrace) -> dict[str, Any]:
    """The document that `--json` prints."""
    diagnosis = diagnose(trace.spans, trace.steps)
    return {
        "request_id": request.request_id,
        "trace_id": request.trace_id,
        "name": request.name,
        # Spans of before have no status if all went well.
        "status": "OK" if request.status == "UNSET" else request.status,
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
    """The request that was over last when the command was entered.

    Its root span may still be on its way; a request of others that came to an end meanwhile, or
    beside one that was just made from here, is not the one that is meant.
    """
    home, asked_ns = millrace_home(), time.time_ns()
    record = running_stack(home)
    if record is not None and all(item.name != COLLECTOR for item in record.processes):
        raise RequestNotFound(
            "the running stack keeps no traces here (--no-telemetry, OTEL_TRACES_EXPORTER or "
            "OTEL_SDK_DISABLED); those of earlier runs: "
            f"{own_command('trace --slowest')}, {own_command('trace ID')}"
        )
    mine = last_request(home)
    if mine is not None and time.time() - mine.ended_unix_s < FRESH_S:
        with contextlib.suppress(RequestNotFound):
            return _find_patiently(store, mine.request_id)
    if record is not None:
        _await_arrivals(store, asked_ns)
    found = store.latest(MAX_LATE_REQUESTS)
    if not found:
        raise RequestNotFound("no request has been traced yet")
    return next((request for request in found if request.end_ns <= asked_ns), found[0])


def _await_arrivals(store: TraceStore, asked_ns: int) -> None:
    """Returns when spans have come that were sent after the command was entered, or too late."""
    deadline = time.monotonic() + EXPORT_S
    while time.monotonic() < deadline:
        newest = store.latest(1)
        if newest and newest[0].arrived_ns > asked_ns:
            return
        time.sleep(POLL_S)


def _find_patiently(store: TraceStore, prefix: str) -> RequestSummary:
    """A request that has just ended may still be on its way to the store."""
    deadline = time.monotonic() + APPEAR_S
    while True:
        try:
            return store.find(prefix)
        except RequestNotFound:
            if time.monotonic() > deadline:
                raise
        time.sleep(POLL_S)


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
            _print(_wrapped(_line(request, trace)))
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
                _print(_wrapped(_line(request, trace)))
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


def _show(lines: list[str]) -> None:
    """Bars stand between the empty lines and fit as they are; events among them, in brackets."""
    first, last = lines.index(""), len(lines) - 1 - lines[::-1].index("")
    for number, line in enumerate(lines):
        is_bar = first < number < last and not line.lstrip().startswith("(")
        _print(line if is_bar else _wrapped(line))


def _wrapped(text: str) -> str:
    """On a terminal a line that is too long goes on below its beginning, not at the edge."""
    width, _ = terminal(sys.stdout)
    if not sys.stdout.isatty() or len(text) <= width:
        return text
    indent = " " * (len(text) - len(text.lstrip()) + 2)
    return textwrap.fill(text, width, subsequent_indent=indent, break_on_hyphens=False)


def _print(text: str) -> None:
    print(text, flush=True)
