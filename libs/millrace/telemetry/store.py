"""The reading side of the local span store, for `millrace trace` and the tests."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.core.errors import InvalidRequest, RequestNotFound, Unavailable
from millrace.core.own_command import own_command

from .names import SPAN_STEP
from .span_record import NS_PER_S, SpanEvent, SpanLink, SpanRecord, orphans, subtree

STORE_FILE = "spans.db"
MIN_PREFIX_CHARS = 6
ID_DIGITS = frozenset("0123456789abcdef")

_REQUEST_COLUMNS = (
    "seq, trace_id, span_id, request_id, name, start_ns, duration_ns, status, arrived_ns"
)


@dataclass(frozen=True, slots=True)
class RequestSummary:
    """A request in the store; `seq` rises in order of arrival there."""

    seq: int
    trace_id: str
    span_id: str
    request_id: str
    name: str
    start_ns: int
    duration_ns: int
    status: str
    arrived_ns: int

    @property
    def duration_s(self) -> float:
        """Arrival to end at the gateway, seconds."""
        return self.duration_ns / NS_PER_S

    @property
    def end_ns(self) -> int:
        """When it was over at the gateway."""
        return self.start_ns + self.duration_ns


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """A request's spans, root first and depth first, and the sampled batch steps it was in.

    Last come spans whose parent was lost.
    """

    spans: Sequence[SpanRecord]
    steps: Sequence[SpanRecord]


class TraceStore:
    """Reads the file that a collector writes, without locking it."""

    def __init__(self, path: Path) -> None:
        """Raises Unavailable where there is no such file or it cannot be read."""
        if not path.is_file():
            raise Unavailable(f"there is no span store at {path}; `{own_command('up')}` makes one")
        try:
            self._connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5.0)
            self._connection.execute("SELECT count(*) FROM requests")
        except sqlite3.Error as error:
            raise Unavailable(f"the span store {path} cannot be read: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def latest(self, limit: int) -> list[RequestSummary]:
        """The requests that ended last, newest first."""
        return self._requests("ORDER BY seq DESC LIMIT ?", limit)

    def slowest(self, limit: int) -> list[RequestSummary]:
        """The requests that took longest, slowest first."""
        return self._requests("ORDER BY duration_ns DESC, seq LIMIT ?", limit)

    def after(self, seq: int, *, arrived_before_ns: int) -> list[RequestSummary]:
        """Requests above `seq` whose root span arrived before the given time, in order.

        The spans of the other services come up to a second later than the root.
        """
        return self._requests(
            "WHERE seq > ? AND arrived_ns < ? ORDER BY seq LIMIT 1000", seq, arrived_before_ns
        )

    def find(self, prefix: str) -> RequestSummary:
        """The one request whose request id or trace id begins with `prefix`.

        It may stand as in a reply: `chatcmpl-…`, or a whole traceresponse.

        Raises InvalidRequest where it is too short or fits several, RequestNotFound where none.
        """
        given = prefix
        parts = prefix.strip().lower().split("-")
        prefix = max((part for part in parts if set(part) <= ID_DIGITS), key=len, default="")
        if len(prefix) < MIN_PREFIX_CHARS:
            raise InvalidRequest(
                f"{given!r} is no id: at least {MIN_PREFIX_CHARS} hex digits are needed",
                field="id",
            )
        end = prefix + "g"
        found = self._requests(
            "WHERE (request_id >= ? AND request_id < ?) OR (trace_id >= ? AND trace_id < ?)"
            " ORDER BY seq DESC LIMIT 20",
            *(prefix, end, prefix, end),
        )
        if not found:
            raise RequestNotFound(f"no request or trace in the store begins with {prefix}")
        if len({item.trace_id for item in found}) > 1:
            fitting = ", ".join(item.request_id or item.trace_id for item in found[:5])
            raise InvalidRequest(f"{prefix} fits {len(found)} requests: {fitting}", field="id")
        return found[0]

    def load(self, request: RequestSummary) -> RequestTrace:
        """Everything stored about a request. Raises RequestNotFound where it was evicted since."""
        spans = self.spans(request.trace_id)
        root = next((span for span in spans if span.span_id == request.span_id), None)
        if root is None:
            raise RequestNotFound(f"{request.request_id} is no longer in the store")
        members = subtree(spans, root)
        if sum(span.is_request for span in spans) == 1:
            # Those below a span that a killed process took with it: whose else could they be?
            members += orphans(spans, members)
        return RequestTrace(members, self.steps(request.trace_id, {s.span_id for s in members}))

    def spans(self, trace_id: str) -> list[SpanRecord]:
        """Every span of a trace, by start."""
        rows = self._connection.execute(
            "SELECT trace_id, span_id, parent_id, service, name, kind, start_ns, end_ns, status,"
            " status_message, details FROM spans WHERE trace_id = ? ORDER BY start_ns, end_ns DESC",
            (trace_id,),
        )
        return [_record(row) for row in rows]

    def steps(self, trace_id: str, span_ids: set[str] | None = None) -> list[SpanRecord]:
        """The sampled batch steps that link to the trace, or to those of its spans, by start."""
        rows = self._connection.execute(
            "SELECT DISTINCT steps.seq, steps.trace_id, steps.span_id, service, start_ns, end_ns,"
            " details, member_span_id FROM step_links JOIN steps ON steps.seq = step_seq"
            " WHERE member_trace_id = ? ORDER BY start_ns",
            (trace_id,),
        )
        steps: dict[int, SpanRecord] = {}
        for seq, step_trace, step_span, service, start_ns, end_ns, details, member in rows:
            if span_ids is None or member in span_ids:
                row = (step_trace, step_span, "", service, SPAN_STEP, "INTERNAL")
                steps[seq] = _record((*row, start_ns, end_ns, "UNSET", "", details))
        return list(steps.values())

    def _requests(self, rest: str, *values: Any) -> list[RequestSummary]:
        rows = self._connection.execute(f"SELECT {_REQUEST_COLUMNS} FROM requests {rest}", values)
        return [RequestSummary(*row) for row in rows]


def _record(row: tuple[Any, ...]) -> SpanRecord:
    trace_id, span_id, parent_id, service, name, kind = row[:6]
    start_ns, end_ns, status, status_message, details = row[6:]
    attributes, events, links = json.loads(details)
    return SpanRecord(
        trace_id=trace_id,
        span_id=span_id,
        parent_id=parent_id,
        service=service,
        name=name,
        kind=kind,
        start_ns=start_ns,
        end_ns=end_ns,
        attributes=attributes,
        events=tuple(SpanEvent(*event) for event in events),
        links=tuple(SpanLink(*link) for link in links),
        status=status,
        status_message=status_message,
    )
