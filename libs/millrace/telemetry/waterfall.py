"""Draws a request's spans as a waterfall of text."""

from __future__ import annotations

from collections.abc import Sequence

from .diagnosis import Diagnosis
from .durations import format_s
from .names import ATTR_BATCH_KIND, ATTR_LOSS_REASON, ATTR_REQUEST_ID, RPC_PREFIX
from .span_record import SpanEvent, SpanRecord
from .store import RequestTrace

MIN_BAR_CELLS = 12
MIN_NAME_CELLS = 12
MAX_NAME_CELLS = 44
# Marks, both times, and the gaps between the columns.
FIXED_CELLS = 25
# Eighths of a cell, the last one full.
PARTS = " ▏▎▍▌▋▊▉█"


def draw(trace: RequestTrace, diagnosis: Diagnosis, *, width: int, is_unicode: bool) -> list[str]:
    """The lines; `width` is that of the terminal, in cells. The root comes first in the trace."""
    root = trace.spans[0]
    depths = _depths(trace.spans)
    labels = [f"{'  ' * depths[span.span_id]}{_short(span.name)}" for span in trace.spans]
    service_cells = max(len(span.service) for span in trace.spans)
    room = width - service_cells - FIXED_CELLS
    most = min(MAX_NAME_CELLS, max(len(label) for label in labels))
    name_cells = max(MIN_NAME_CELLS, min(most, room - MIN_BAR_CELLS))
    bar_cells = max(MIN_BAR_CELLS, room - name_cells)
    lines = [*_headline(root), ""]
    for span, label in zip(trace.spans, labels, strict=True):
        offset_s = (span.start_ns - root.start_ns) / 1e9
        bar = _bar(span, root, bar_cells, is_unicode=is_unicode)
        mark = "!" if span.status == "ERROR" else " "
        lines.append(
            f"{_fit(label, name_cells)}  {span.service:<{service_cells}} {mark}"
            f"{format_s(offset_s):>9} {format_s(span.duration_s):>9} {bar}".rstrip()
        )
        lines += _event_lines(span, depths[span.span_id])
    return [*lines, "", _step_line(trace.steps, diagnosis), diagnosis.sentence]


def _headline(root: SpanRecord) -> list[str]:
    request_id = root.attributes.get(ATTR_REQUEST_ID, "")
    status = "ok" if root.status != "ERROR" else "failed" if root.is_accepted else "refused"
    ids = [f"request {request_id}"] if request_id else []
    return [f"{root.name}  {format_s(root.duration_s)}  {status}", *ids, f"trace   {root.trace_id}"]


def _depths(spans: Sequence[SpanRecord]) -> dict[str, int]:
    """Span id → depth below the first span; parents stand before their children.

    A span without its parent is drawn as a child of the first.
    """
    depths = {spans[0].span_id: 0}
    for span in spans[1:]:
        depths[span.span_id] = depths.get(span.parent_id, 0) + 1
    return depths


def _short(name: str) -> str:
    return name.removeprefix(RPC_PREFIX)


def _fit(label: str, cells: int) -> str:
    return label.ljust(cells) if len(label) <= cells else f"{label[: cells - 2]}.."


def _bar(span: SpanRecord, root: SpanRecord, cells: int, *, is_unicode: bool) -> str:
    """Where the span lies in the root's time, cut to it, and never shorter than a mark."""
    whole_ns = max(1, root.end_ns - root.start_ns)
    start = min(1.0, max(0.0, (span.start_ns - root.start_ns) / whole_ns))
    end = min(1.0, max(start, (span.end_ns - root.start_ns) / whole_ns))
    first = min(cells - 1, int(start * cells))
    eighths = max(1, round((end * cells - first) * 8))
    full, part = divmod(eighths, 8)
    if is_unicode:
        return " " * first + PARTS[8] * full + (PARTS[part] if part else "")
    return " " * first + ("#" * (full + (part >= 4)) or "|")


def _event_lines(span: SpanRecord, depth: int) -> list[str]:
    if not span.events:
        return []
    events = sorted(span.events, key=lambda event: event.time_ns)
    shown = ", ".join(
        f"{_event_name(event)} +{format_s((event.time_ns - span.start_ns) / 1e9)}"
        for event in events
    )
    return [f"{'  ' * (depth + 1)}({shown})"]


def _event_name(event: SpanEvent) -> str:
    reason = event.attributes.get(ATTR_LOSS_REASON)
    return f"{event.name} {reason}" if reason else event.name


def _step_line(steps: Sequence[SpanRecord], diagnosis: Diagnosis) -> str:
    if not steps:
        return "batch steps: none sampled"
    kinds: dict[str, int] = {}
    for step in steps:
        kind = str(step.attributes.get(ATTR_BATCH_KIND, "unknown"))
        kinds[kind] = kinds.get(kind, 0) + 1
    each_s = sum(step.duration_s for step in steps) / len(steps)
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return (
        f"batch steps: {diagnosis.num_steps} sampled ({shown}), mean batch "
        f"{diagnosis.mean_batch_size:.1f} rows, {format_s(each_s)} each"
    )
