"""A finished span as the store, the drawings and the tests see it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .names import (
    ATTR_REQUEST_ID,
    ATTR_USAGE_INPUT_TOKENS,
    SERVICE_GATEWAY,
    SPAN_PROCESS,
    SPAN_REQUEST,
    matches_span,
)

NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """Something that happened inside a span."""

    name: str
    time_ns: int
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpanLink:
    """A pointer to a span of another trace."""

    trace_id: str
    span_id: str


@dataclass(frozen=True, slots=True)
class SpanRecord:
    """A finished span; ids are lower-case hex, times are ns since 1970, `parent_id` may be empty.

    `kind` is one of UNSPECIFIED, INTERNAL, SERVER, CLIENT, PRODUCER, CONSUMER; `status` one of
    UNSET, OK, ERROR.
    """

    trace_id: str
    span_id: str
    parent_id: str
    service: str
    name: str
    kind: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    events: Sequence[SpanEvent] = ()
    links: Sequence[SpanLink] = ()
    status: str = "UNSET"
    status_message: str = ""

    @property
    def duration_s(self) -> float:
        """Length, seconds."""
        return (self.end_ns - self.start_ns) / NS_PER_S

    @property
    def is_request(self) -> bool:
        """True for the gateway's span around a whole request, a batch or a refusal."""
        if self.service != SERVICE_GATEWAY:
            return False
        has_id = ATTR_REQUEST_ID in self.attributes and self.name != SPAN_PROCESS
        return has_id or matches_span(SPAN_REQUEST, self.name)

    @property
    def is_accepted(self) -> bool:
        """For the span of a request: False if it ended with an error before it was queued."""
        return self.status != "ERROR" or ATTR_USAGE_INPUT_TOKENS in self.attributes


def children_of(spans: Iterable[SpanRecord]) -> dict[str, list[SpanRecord]]:
    """Span id → its children in order of start."""
    children: dict[str, list[SpanRecord]] = {}
    for span in sorted(spans, key=lambda span: (span.start_ns, span.end_ns, span.span_id)):
        children.setdefault(span.parent_id, []).append(span)
    return children


def find_root(spans: Sequence[SpanRecord]) -> SpanRecord | None:
    """The request's span, else the earliest one whose parent is not here; None without spans."""
    known = {span.span_id for span in spans}
    tops = [span for span in spans if span.parent_id not in known]
    tops.sort(key=lambda span: (not span.is_request, span.start_ns))
    return tops[0] if tops else None


def subtree(spans: Sequence[SpanRecord], root: SpanRecord) -> list[SpanRecord]:
    """`root` and everything below it, depth first in order of start."""
    children = children_of(spans)
    found: list[SpanRecord] = []
    seen: set[str] = set()
    pending = [root]
    while pending:
        span = pending.pop()
        if span.span_id in seen:
            continue
        seen.add(span.span_id)
        found.append(span)
        pending.extend(reversed(children.get(span.span_id, ())))
    return found


def orphans(spans: Sequence[SpanRecord], known: Sequence[SpanRecord]) -> list[SpanRecord]:
    """What is not `known` and lies below a span that is not there, depth first."""
    ids = {span.span_id for span in spans}
    tops = [span for span in spans if span.parent_id and span.parent_id not in ids]
    found = [span for top in tops for span in subtree(spans, top)]
    return [span for span in found if span not in known]


Interval = tuple[int, int]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same times as sorted, disjoint intervals; empty ones vanish."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if start >= end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def clip(intervals: Iterable[Interval], start: int, end: int) -> list[Interval]:
    """The parts inside [start, end], as a union."""
    return union((max(a, start), min(b, end)) for a, b in intervals)


def subtract(intervals: Iterable[Interval], holes: Iterable[Interval]) -> list[Interval]:
    """The parts of `intervals` outside `holes`, as a union."""
    rest = union(intervals)
    for hole_start, hole_end in union(holes):
        cut: list[Interval] = []
        for start, end in rest:
            cut.append((start, min(end, hole_start)))
            cut.append((max(start, hole_end), end))
        rest = union(cut)
    return rest


def total_s(intervals: Iterable[Interval]) -> float:
    """Length of disjoint intervals together, seconds."""
    return sum(end - start for start, end in intervals) / NS_PER_S
