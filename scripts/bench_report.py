"""The report of a benchmark as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

LOAD_COLUMNS = {
    "protocol": "wire",
    "streams": "streams",
    "requests": "requests",
    "mean_prompt_tokens": "prompt",
    "tokens_per_s": "tokens/s",
    "ttft_ms_p50": "TTFT p50",
    "ttft_ms_p99": "TTFT p99",
    "itl_ms_p50": "ITL p50",
    "itl_ms_p99": "ITL p99",
    "mean_decode_batch": "batch",
    "client_cpu_ms_per_token": "client CPU",
    "read_gb_per_s": "GB/s",
}


def print_report(report: dict[str, Any]) -> None:
    """Times are milliseconds, client CPU per token; GB/s is the read bandwidth just before."""
    print(f"dtype {report['dtype']}, read bandwidth {report['read_gb_per_s']} GB/s")
    if "start_up_s" in report:
        print(f"start-up {report['start_up_s']} s")
    print()
    _print_table(
        list(LOAD_COLUMNS.values()),
        [[_show(load[key]) for key in LOAD_COLUMNS] for load in report["loads"]],
    )
    if "hops_ms" in report:
        print("\none stream, median ms")
        _print_table(["hop", "ms"], [[hop, _show(ms)] for hop, ms in report["hops_ms"].items()])
    if "peak_rss_mb" in report:
        _print_processes(report["peak_rss_mb"], report["idle_cpu_percent"])
    if "telemetry" in report:
        _print_telemetry(report["telemetry"])


def _print_processes(peaks: dict[str, float | None], idle: dict[str, float]) -> None:
    print()
    rows = [[name, _show(peak), _show(idle.get(name))] for name, peak in peaks.items()]
    total = sum(peak for peak in peaks.values() if peak is not None)
    rows.append(["all", _show(round(total, 1)), _show(round(sum(idle.values()), 2))])
    _print_table(["process", "peak MB", "idle CPU %"], rows)


def _print_telemetry(cost: dict[str, Any]) -> None:
    print(
        f"\ntelemetry at 32 streams: {cost['cost_percent']} % of tokens/s "
        f"(pairs {cost['cost_percent_pairs']}), {cost['cpu_cost_percent']} % of CPU time "
        f"(pairs {cost['cpu_cost_percent_pairs']})"
    )
    sides = [cost["with"], cost["without"]]
    rows = [["tokens/s", *(_show(side["tokens_per_s"]) for side in sides)]]
    for name in cost["with"]["cpu_ms_per_token"]:
        rows.append([name, *(_show(side["cpu_ms_per_token"].get(name)) for side in sides)])
    _print_table(["CPU ms per token", "with", "without"], rows)


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column to the left, the others to the right."""
    lines = [list(heads), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    for line in lines:
        rest = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        print("  ".join([line[0].ljust(widths[0]), *rest]))


def _show(value: Any) -> str:
    return "-" if value is None else str(value)
