"""The writing side of the local span store: an SQLite file with the last requests' spans.

Bounded by count: `max_requests` traces that hold an accepted request, and some hundred that hold a
refused one or none, so that those cannot push out the first. The last `max_steps` batch steps are
kept apart, because they are roots without a request. The file is a cache: one that is damaged or of
another version is made anew.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .names import ATTR_REQUEST_ID, SPAN_STEP
from .span_record import SpanRecord

SCHEMA_VERSION = 1
MAX_REQUESTS = 2000
MAX_REFUSED = 500
MAX_OTHER_TRACES = 200
MAX_STEPS = 10_000
# Values of `traces.is_request`. A trace is of the first kind that any of its spans makes it.
OTHER, REQUEST, REFUSED = 0, 1, 2
# An agent may put thousands of requests into one trace.
MAX_SPANS_PER_TRACE = 2000

SCHEMA = """
CREATE TABLE traces (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    trace_id TEXT NOT NULL UNIQUE,
    is_request INTEGER NOT NULL DEFAULT 0,
    num_spans INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX traces_by_kind ON traces (is_request, seq);
CREATE TABLE spans (
    trace_id TEXT NOT NULL, span_id TEXT NOT NULL, parent_id TEXT NOT NULL,
    service TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL,
    start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL,
    status TEXT NOT NULL, status_message TEXT NOT NULL, details TEXT NOT NULL,
    PRIMARY KEY (trace_id, span_id)
) WITHOUT ROWID;
CREATE TABLE requests (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    trace_id TEXT NOT NULL, span_id TEXT NOT NULL, request_id TEXT NOT NULL, name TEXT NOT NULL,
    start_ns INTEGER NOT NULL, duration_ns INTEGER NOT NULL, status TEXT NOT NULL,
    arrived_ns INTEGER NOT NULL,
    UNIQUE (trace_id, span_id)
);
CREATE INDEX requests_by_id ON requests (request_id);
CREATE INDEX requests_by_duration ON requests (duration_ns);
CREATE TABLE steps (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    trace_id TEXT NOT NULL, span_id TEXT NOT NULL, service TEXT NOT NULL,
    start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL, details TEXT NOT NULL,
    UNIQUE (trace_id, span_id)
);
CREATE TABLE step_links (
    member_trace_id TEXT NOT NULL, step_seq INTEGER NOT NULL, member_span_id TEXT NOT NULL,
    PRIMARY KEY (member_trace_id, step_seq, member_span_id)
) WITHOUT ROWID;
CREATE INDEX step_links_by_step ON step_links (step_seq);
"""


class TraceWriter:
    """Owns the file for writing; one process at a time, any one thread at a time."""

    def __init__(
        self,
        path: Path,
        *,
        max_requests: int = MAX_REQUESTS,
        max_refused: int = MAX_REFUSED,
        max_other_traces: int = MAX_OTHER_TRACES,
        max_steps: int = MAX_STEPS,
    ) -> None:
        """Opens or makes the file. Raises OSError or sqlite3.Error where neither is possible."""
        self._max_traces = {REQUEST: max_requests, REFUSED: max_refused, OTHER: max_other_traces}
        self._max_steps = max_steps
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = _open(path)
        except sqlite3.DatabaseError:
            for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
                path.with_name(name).unlink(missing_ok=True)
            self._connection = _open(path)

    def add(self, spans: Sequence[SpanRecord]) -> None:
        """Keep the spans, and forget the oldest beyond the bounds; one transaction.

        A span seen before is ignored. Raises sqlite3.Error, a full disk say; then nothing is kept.
        """
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            steps = [span for span in spans if _is_step(span)]
            others = [span for span in spans if not _is_step(span)]
            self._add_steps(steps)
            by_trace: dict[str, list[SpanRecord]] = {}
            for span in others:
                by_trace.setdefault(span.trace_id, []).append(span)
            for trace_id, members in by_trace.items():
                self._add_to_trace(trace_id, members)
            self._evict()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _add_steps(self, steps: Iterable[SpanRecord]) -> None:
        for step in steps:
            row = self._connection.execute(
                "INSERT OR IGNORE INTO steps (trace_id, span_id, service, start_ns, end_ns,"
                " details) VALUES (?, ?, ?, ?, ?, ?) RETURNING seq",
                (
                    *(step.trace_id, step.span_id, step.service, step.start_ns, step.end_ns),
                    _details(step, with_links=False),
                ),
            ).fetchone()
            if row is not None:
                self._connection.executemany(
                    "INSERT OR IGNORE INTO step_links VALUES (?, ?, ?)",
                    [(link.trace_id, row[0], link.span_id) for link in step.links],
                )

    def _add_to_trace(self, trace_id: str, spans: Sequence[SpanRecord]) -> None:
        execute = self._connection.execute
        row = execute(
            "INSERT INTO traces (trace_id, is_request) VALUES (?, ?) ON CONFLICT (trace_id) DO"
            f" UPDATE SET is_request = CASE WHEN {REQUEST} IN (is_request, excluded.is_request)"
            f" THEN {REQUEST} ELSE max(is_request, excluded.is_request) END RETURNING num_spans",
            (trace_id, _kind_of(spans)),
        ).fetchone()
        kept = spans[: max(0, MAX_SPANS_PER_TRACE - row[0])]
        added = self._connection.executemany(
            "INSERT OR IGNORE INTO spans VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [_row(span) for span in kept],
        ).rowcount
        execute("UPDATE traces SET num_spans = num_spans + ? WHERE trace_id = ?", (added, trace_id))
        arrived_ns = time.time_ns()
        self._connection.executemany(
            "INSERT OR IGNORE INTO requests (trace_id, span_id, request_id, name, start_ns,"
            " duration_ns, status, arrived_ns) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    *(trace_id, span.span_id, str(span.attributes.get(ATTR_REQUEST_ID, ""))),
                    *(span.name, span.start_ns, span.end_ns - span.start_ns, span.status),
                    arrived_ns,
                )
                for span in kept
                if span.is_request
            ],
        )

    def _evict(self) -> None:
        execute = self._connection.execute
        for is_request, max_traces in self._max_traces.items():
            gone = execute(
                "DELETE FROM traces WHERE is_request = ? AND seq <= (SELECT seq FROM traces"
                " WHERE is_request = ? ORDER BY seq DESC LIMIT 1 OFFSET ?) RETURNING trace_id",
                (is_request, is_request, max_traces),
            ).fetchall()
            self._connection.executemany("DELETE FROM spans WHERE trace_id = ?", gone)
            self._connection.executemany("DELETE FROM requests WHERE trace_id = ?", gone)
        newest = execute("SELECT max(seq) FROM steps").fetchone()[0] or 0
        if newest > self._max_steps:
            last_gone = newest - self._max_steps
            execute("DELETE FROM step_links WHERE step_seq <= ?", (last_gone,))
            execute("DELETE FROM steps WHERE seq <= ?", (last_gone,))


def _open(path: Path) -> sqlite3.Connection:
    # Made by us, so that only the user can read it.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA journal_size_limit = 8388608")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            connection.executescript(
                f"BEGIN;{SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;"
            )
        elif version != SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"the store has version {version}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _kind_of(spans: Iterable[SpanRecord]) -> int:
    kinds = {_kind(span) for span in spans}
    return next(kind for kind in (REQUEST, REFUSED, OTHER) if kind in kinds)


def _kind(span: SpanRecord) -> int:
    if span.is_request:
        return REQUEST if span.is_accepted else REFUSED
    return REQUEST if ATTR_REQUEST_ID in span.attributes else OTHER


def _is_step(span: SpanRecord) -> bool:
    return span.name == SPAN_STEP and not span.parent_id


def _row(span: SpanRecord) -> tuple[Any, ...]:
    return (
        *(span.trace_id, span.span_id, span.parent_id, span.service, span.name, span.kind),
        *(span.start_ns, span.end_ns, span.status, span.status_message),
        _details(span, with_links=True),
    )


def _details(span: SpanRecord, *, with_links: bool) -> str:
    """Attributes, events and links as JSON: [{...}, [[name, ns, {...}]], [[trace, span]]]."""
    events = [[event.name, event.time_ns, event.attributes] for event in span.events]
    links = [[link.trace_id, link.span_id] for link in span.links] if with_links else []
    return json.dumps([span.attributes, events, links], separators=(",", ":"))
