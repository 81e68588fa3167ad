"""The figures of a load as tables for a terminal."""

from __future__ import annotations

from typing import Any

from millrace.cli.console import Console

from .slo import Slo
from .statistics import PERCENTS

LATENCIES = {
    "ttft": "TTFT",
    "tpot": "TPOT",
    "itl": "ITL",
    "e2e": "end to end",
}


def show_load(console: Console, figures: dict[str, Any], slo: Slo | None) -> None:
    """Times in milliseconds."""
    console.prose(
        f"{figures['requests']} answered, {figures['failed']} failed, "
        f"{figures['cut_short']} cut short, {figures['elapsed_s']} s over {figures['protocol']}"
        + (f", model {figures['model']}" if figures["model"] else "")
    )
    console.line()
    rows = [
        [label, *(_show(figures[f"{name}_ms_p{percent}"]) for percent in PERCENTS)]
        for name, label in LATENCIES.items()
    ]
    percents = [f"p{percent}" for percent in PERCENTS]
    console.table(["ms", *percents], rows, right=percents)
    console.line()
    console.table(["figure", "value"], _rates(figures))
    if slo is not None:
        limits = ((name, getattr(slo, f"{name}_ms")) for name in ("ttft", "tpot", "e2e"))
        stated = ", ".join(f"{name} {limit:g} ms" for name, limit in limits if limit is not None)
        console.line()
        console.prose(
            f"goodput at {stated}: {_show(figures['goodput_requests_per_s'])} requests/s, "
            f"{_percent(figures['good_share'])} of the requests"
        )
    if figures["errors"]:
        console.line()
        rows = [[reason, str(count)] for reason, count in figures["errors"].items()]
        console.table(["error", "requests"], rows, right=["requests"])


def _rates(figures: dict[str, Any]) -> list[list[str]]:
    rates = {
        "output tokens/s": "tokens_per_s",
        "prompt and output tokens/s": "prompt_and_output_tokens_per_s",
        "requests/s": "requests_per_s",
        "prompt tokens, mean": "mean_prompt_tokens",
        "output tokens, mean": "mean_output_tokens",
        "client CPU, s": "client_cpu_s",
        "client CPU, ms per token": "client_cpu_ms_per_token",
        "sent late, ms, p99": "late_ms_p99",
    }
    return [[label, _show(figures[name])] for label, name in rates.items()]


def _show(value: Any) -> str:
    return "-" if value is None else str(value)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
