"""Figures of a load: rates, percentiles, goodput."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .outcome import REASON_CUT_SHORT, Load
from .slo import Slo

PERCENTS = (50, 90, 99)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """Linear between the two nearest ranks, as numpy's default; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    below, above = math.floor(rank), math.ceil(rank)
    return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)


def load_figures(load: Load, slo: Slo | None = None) -> dict[str, Any]:
    """Ready for JSON. Milliseconds and seconds as named; None where nothing was seen.

    Rates count answers that came to their end. A goodput is the rate of those within `slo`.
    """
    answered = load.answered
    errors = load.errors()
    num_cut_short = errors.pop(REASON_CUT_SHORT, 0)
    num_output = load.num_output_tokens
    num_prompt = sum(outcome.num_prompt_tokens for outcome in answered)
    tpots = [outcome.tpot_s for outcome in answered]
    figures: dict[str, Any] = {
        "protocol": load.protocol,
        "model": load.model,
        "streams": load.num_streams,
        "requests": len(answered),
        "failed": sum(errors.values()),
        "cut_short": num_cut_short,
        "errors": errors,
        "elapsed_s": round(load.elapsed_s, 3),
        "requests_per_s": _rate(len(answered), load.elapsed_s),
        "mean_prompt_tokens": _mean(num_prompt, len(answered)),
        "mean_output_tokens": _mean(num_output, len(answered)),
        "tokens_per_s": _rate(num_output, load.elapsed_s),
        "prompt_and_output_tokens_per_s": _rate(num_prompt + num_output, load.elapsed_s),
        **_percentiles("ttft", [outcome.ttft_s for outcome in answered]),
        **_percentiles("tpot", [tpot for tpot in tpots if tpot is not None]),
        **_percentiles("itl", [gap for outcome in answered for gap in outcome.gaps_s]),
        **_percentiles("e2e", [outcome.e2e_s for outcome in answered]),
        "late_ms_p99": _ms(percentile([outcome.late_s for outcome in load.outcomes], 99)),
        "client_cpu_s": round(load.client_cpu_s, 3),
        "client_cpu_ms_per_token": (
            round(1000 * load.client_cpu_s / num_output, 3) if num_output else None
        ),
        "was_interrupted": load.was_interrupted,
    }
    if slo is not None:
        num_good = sum(slo.is_met(outcome) for outcome in answered)
        num_ended = len(answered) + figures["failed"]
        figures["goodput_requests_per_s"] = _rate(num_good, load.elapsed_s)
        figures["good_share"] = round(num_good / num_ended, 4) if num_ended else None
    return figures


def _percentiles(name: str, seconds: Sequence[float]) -> dict[str, float | None]:
    return {f"{name}_ms_p{percent}": _ms(percentile(seconds, percent)) for percent in PERCENTS}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 3) if seconds > 0 else 0.0


def _mean(total: int, count: int) -> float | None:
    return round(total / count, 1) if count else None
