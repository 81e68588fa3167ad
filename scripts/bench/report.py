"""The report of a benchmark as tables with captions."""

from __future__ import annotations

from typing import Any

from .tables import Sheet, show

SPEED = {
    "gb_per_s": "GB/s",
    "tflops": "TFLOP/s",
    "read_gb_per_s": "machine GB/s",
    "multiply_tflops": "machine TFLOP/s",
    "read_share_percent": "% of read",
    "limit_share_percent": "% of limit",
    "bound": "limit is",
}
LINEAR = {
    "layer": "layer",
    "columns": "columns",
    "k": "k",
    "weights": "weights",
    "rows": "rows",
    "us": "µs",
    **SPEED,
}
ATTENTION = {
    "what": "step",
    "kv": "K/V",
    "rows": "rows",
    "new": "new tokens",
    "context": "context",
    "us": "µs",
    **SPEED,
}
ENGINE = {
    "what": "step",
    "weights": "weights",
    "rows": "rows",
    "context": "context",
    "ms": "ms/step",
    "tokens_per_s": "tokens/s",
    **SPEED,
}
LOADS = {
    "protocol": "wire",
    "streams": "streams",
    "requests": "requests",
    "mean_prompt_tokens": "prompt",
    "tokens_per_s": "tokens/s",
    "ttft_ms_p50": "TTFT p50 ms",
    "ttft_ms_p99": "TTFT p99 ms",
    "itl_ms_p50": "ITL p50 ms",
    "itl_ms_p99": "ITL p99 ms",
    "mean_decode_batch": "batch",
    "client_cpu_ms_per_token": "client CPU ms/token",
    "read_gb_per_s": "machine GB/s",
}
OVERHEAD = {
    "wire": "wire",
    "ttft": "TTFT ms",
    "prefill": "of it the prefill step",
    "not_model": "all that is not the model",
    "not_model_worst": "worst",
}
MEMORY = {
    "process": "process",
    "peak_rss": "peak MB",
    "private": "private MB",
    "weights": "mapped weights MB",
    "weights_private": "private of them MB",
    "idle": "idle CPU %",
}
OVERHEAD_AIM_MS = 5


def report_sheet(report: dict[str, Any]) -> Sheet:
    """Everything that was measured; see docs/performance.md for the words."""
    sheet = Sheet()
    _about(sheet, report["about"])
    _machine(sheet, report["machine"])
    for key, caption, columns in (
        ("linears", "Kernels, linear layers: one call, weights from memory.", LINEAR),
        ("attention", "Kernels, paged attention: one layer's call, K/V from memory.", ATTENTION),
        ("engine", "Engine: the model alone, one step, Python included.", ENGINE),
    ):
        if key in report:
            sheet.table(f"{caption} {LIMIT_WORDS}", columns, report[key])
    if "loads" in report:
        caption = "Full stack: each stream sends its next request when the last is answered."
        sheet.table(f"{caption} Batch: rows per decode step.", LOADS, report["loads"])
    if "overhead_ms" in report:
        _overhead(sheet, report["overhead_ms"], report["hops_ms"])
    if "memory_mb" in report:
        _processes(sheet, report)
    if "telemetry" in report:
        _telemetry(sheet, report["telemetry"])
    return sheet


def _about(sheet: Sheet, about: dict[str, Any]) -> None:
    sheet.text(f"# {about['model']} on {about['cpu']}")
    rows = [{"what": name, "value": value} for name, value in about.items()]
    sheet.table("What was measured, where and when.", {"what": "what", "value": "value"}, rows)


LIMIT_WORDS = (
    "The limit is the longer of reading its bytes\n"
    "and multiplying at the machine's rates beside it, taken in the same moment."
)


def _machine(sheet: Sheet, machine: dict[str, Any]) -> None:
    sheet.text(
        f"Machine of the minute: {machine['cores']} cores, instruction path {machine['path']}, "
        f"reads {machine['read_gb_per_s']} GB/s."
    )
    rows = [{"way": way, "tflops": rate} for way, rate in machine["multiply_tflops"].items()]
    caption = "Multiply rate of a product that stays in the caches; the best one is the limit."
    sheet.table(caption, {"way": "by", "tflops": "TFLOP/s"}, rows)


def _overhead(sheet: Sheet, overheads: dict[str, Any], hops: dict[str, float]) -> None:
    rows = [{"wire": wire, **figures} for wire, figures in overheads.items()]
    caption = "One stream: the client's TTFT, and what of it is not the prefill step (medians)."
    sheet.table(f"{caption} Aim: {OVERHEAD_AIM_MS} ms.", OVERHEAD, rows)
    caption = "One stream over gRPC: every hop on the way (medians)."
    sheet.table(
        caption, {"hop": "hop", "ms": "ms"}, [{"hop": hop, "ms": ms} for hop, ms in hops.items()]
    )


def _processes(sheet: Sheet, report: dict[str, Any]) -> None:
    starts = ", ".join(f"{name} {seconds} s" for name, seconds in report["start_up_s"].items())
    sheet.text(
        f"\nStart-up until the stack answers: {starts}. The first builds kernels and packs weights."
    )
    idle = report["idle_cpu_percent"]
    rows = [
        {"process": name, "idle": idle.get(name), **memory}
        for name, memory in report["memory_mb"].items()
    ]
    total = {key: _total(rows, key) for key in MEMORY if key != "process"}
    caption = "Processes after the load. Private: shared with no other process."
    sheet.table(caption, MEMORY, [*rows, {"process": "all", **total}])
    if report.get("two_workers_mb"):
        _second_worker(sheet, report["two_workers_mb"])


def _total(rows: list[dict[str, Any]], key: str) -> float:
    total: float = sum(row[key] for row in rows if row.get(key) is not None)
    return round(total, 1)


def _second_worker(sheet: Sheet, memory: dict[str, dict[str, Any]]) -> None:
    workers = {name: figures for name, figures in memory.items() if name.startswith("worker")}
    rows = [{"process": name, **figures} for name, figures in workers.items()]
    columns = {key: head for key, head in MEMORY.items() if key != "idle"}
    sheet.table("Two workers side by side, started and idle: weights are one file.", columns, rows)
    last = rows[-1]
    if last.get("weights"):
        own, weights = last["weights_private"], last["weights"]
        sheet.text(
            f"The second worker adds {show(last['private'])} MB of its own, "
            f"{100 * last['private'] / weights:.0f} % of the size of the weights; "
            f"of the weights themselves {own} MB, {100 * own / weights:.1f} %."
        )


def _telemetry(sheet: Sheet, cost: dict[str, Any]) -> None:
    sheet.text(
        f"\nTelemetry at 32 streams: {cost['cost_percent']} % of tokens/s "
        f"(pairs {cost['cost_percent_pairs']}), {cost['cpu_cost_percent']} % of CPU time "
        f"(pairs {cost['cpu_cost_percent_pairs']})"
    )
    sides = {"with": cost["with"], "without": cost["without"]}
    rows = [{"what": "tokens/s", **{name: side["tokens_per_s"] for name, side in sides.items()}}]
    for process in cost["with"]["cpu_ms_per_token"]:
        cells = {name: side["cpu_ms_per_token"].get(process) for name, side in sides.items()}
        rows.append({"what": process, **cells})
    columns = {"what": "CPU ms per token", "with": "with", "without": "without"}
    sheet.table("What telemetry costs, two stacks taking turns.", columns, rows)
