"""The plots of a report: throughput and latency against load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .about import one_line
from .svg import Axis, Points, line_plot, linear_axis, log_axis, points_axis

WIRES = {"grpc": "gRPC", "http": "HTTP"}
LATENCIES = {
    "TTFT p50": "ttft_ms_p50",
    "TTFT p99": "ttft_ms_p99",
    "ITL p50": "itl_ms_p50",
    "ITL p99": "itl_ms_p99",
}


def write_plots(report: dict[str, Any], folder: Path) -> list[Path]:
    """One SVG for each part of the report that is there."""
    plots: dict[str, str] = {}
    note = one_line(report["about"])
    if report.get("loads"):
        plots["throughput"] = throughput_plot(report["loads"], note)
        plots["latency"] = latency_plot(report["loads"], note)
    if report.get("engine"):
        plots["engine"] = engine_plot(report["engine"], note)
    written = []
    for name, text in plots.items():
        path = folder / f"{name}.svg"
        path.write_text(text, "utf-8")
        written.append(path)
    return written


def throughput_plot(loads: Sequence[dict[str, Any]], note: str = "") -> str:
    """Output tokens per second against streams."""
    lines = {
        label: _points(loads, "protocol", wire, "tokens_per_s") for wire, label in WIRES.items()
    }
    y = linear_axis("output tokens per second", _values(lines))
    return line_plot("Full stack: throughput against load", _streams(loads), y, lines, note)


def latency_plot(loads: Sequence[dict[str, Any]], note: str = "") -> str:
    """Time to first token and between tokens against streams."""
    lines = {
        f"{name}, {label}": _points(loads, "protocol", wire, key)
        for name, key in LATENCIES.items()
        for wire, label in WIRES.items()
    }
    y = log_axis("milliseconds", _values(lines))
    return line_plot("Full stack: latency against load", _streams(loads), y, lines, note)


def engine_plot(figures: Sequence[dict[str, Any]], note: str = "") -> str:
    """Decoded tokens per second against rows, at the context that has most rows measured."""
    decodes = [row for row in figures if row["what"] == "decode"]
    contexts = [row["context"] for row in decodes]
    context = max(contexts, key=contexts.count)
    chosen = [row for row in decodes if row["context"] == context]
    names = dict.fromkeys(row["weights"] for row in chosen)
    lines = {name: _points(chosen, "weights", name, "tokens_per_s", "rows") for name in names}
    x = points_axis("rows that decode together", [row["rows"] for row in chosen])
    y = linear_axis("tokens per second", _values(lines))
    return line_plot(f"Engine alone: decoding with {context} tokens of context", x, y, lines, note)


def _points(
    rows: Sequence[dict[str, Any]], group: str, member: str, key: str, load: str = "streams"
) -> Points:
    own = (row for row in rows if row[group] == member and row[key] is not None)
    return [(float(row[load]), float(row[key])) for row in own]


def _values(lines: dict[str, Points]) -> list[float]:
    return [y for points in lines.values() for _, y in points]


def _streams(loads: Sequence[dict[str, Any]]) -> Axis:
    return points_axis("streams at once", [load["streams"] for load in loads])
