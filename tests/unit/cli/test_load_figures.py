"""Arrivals, prompts, traces and figures of `millrace bench`: the parts without I/O."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace.cli.load.arrivals import arrival_times
from millrace.cli.load.lengths import Lengths
from millrace.cli.load.outcome import REASON_CUT_SHORT, Load, Outcome
from millrace.cli.load.prompts import Prompts, prompt_of_blocks
from millrace.cli.load.slo import Slo, parse_slo
from millrace.cli.load.statistics import load_figures, percentile
from millrace.cli.load.trace_file import parse_trace, read_trace
from millrace.cli.load.workload import closed_workload
from millrace.core.errors import ConfigError

FINITE = st.floats(-1e9, 1e9)
MANY = 20_000
LINE: dict[str, Any] = {
    "timestamp": 0,
    "input_length": 600,
    "output_length": 5,
    "hash_ids": [7, 8],
}


def gaps(times_s: Sequence[float]) -> list[float]:
    return [after - before for before, after in pairwise(times_s)]


def outcome(*event_times_s: float, ended_s: float, tokens: int, error: str = "") -> Outcome:
    return Outcome(
        started_s=0.0,
        ended_s=ended_s,
        event_times_s=list(event_times_s),
        num_prompt_tokens=10,
        num_output_tokens=tokens,
        error=error,
    )


@given(st.lists(FINITE, min_size=1, max_size=50), st.floats(0, 100))
def test_percentiles_are_those_of_numpy(values: list[float], percent: float) -> None:
    found = percentile(values, percent)

    assert found == pytest.approx(float(numpy.percentile(values, percent)), rel=1e-9, abs=1e-6)


def test_nothing_seen_has_no_percentile() -> None:
    assert percentile([], 50) is None


@pytest.mark.parametrize("rate", [0.5, 20.0])
def test_poisson_gaps_have_equal_mean_and_deviation(rate: float) -> None:
    found = gaps(arrival_times(MANY, rate, seed=3))

    assert numpy.mean(found) == pytest.approx(1 / rate, rel=0.03)
    assert numpy.std(found) == pytest.approx(1 / rate, rel=0.03)


def test_poisson_counts_per_second_have_equal_mean_and_variance() -> None:
    counts = numpy.bincount(numpy.floor(arrival_times(MANY, 10.0, seed=4)).astype(int))[:-1]

    assert counts.mean() == pytest.approx(10.0, rel=0.05)
    assert counts.var() == pytest.approx(10.0, rel=0.1)


@pytest.mark.parametrize("burstiness", [0.25, 4.0])
def test_burstiness_changes_the_deviation_and_not_the_mean(burstiness: float) -> None:
    found = gaps(arrival_times(MANY, 10.0, burstiness=burstiness, seed=5))

    assert numpy.mean(found) == pytest.approx(0.1, rel=0.05)
    assert numpy.std(found) == pytest.approx(0.1 / math.sqrt(burstiness), rel=0.05)


def test_infinite_burstiness_is_a_metronome() -> None:
    assert arrival_times(3, 4.0, burstiness=math.inf) == [0.0, 0.25, 0.5]


def test_bursts_come_together_and_keep_the_rate() -> None:
    times_s = arrival_times(10, 8.0, burst=4, burstiness=math.inf)

    assert times_s == [0.0] * 4 + [0.5] * 4 + [1.0] * 2


def test_infinite_rate_sends_all_at_once() -> None:
    assert arrival_times(3, math.inf) == [0.0, 0.0, 0.0]


def test_the_seed_decides_the_arrivals() -> None:
    assert arrival_times(9, 2.0, seed=1) == arrival_times(9, 2.0, seed=1)
    assert arrival_times(9, 2.0, seed=1) != arrival_times(9, 2.0, seed=2)


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"burstiness": -1.0}, {"rate": math.nan}])
def test_arrivals_refuse_what_is_not_positive(wrong: dict[str, float]) -> None:
    settings: dict[str, Any] = {"rate": 1.0, **wrong}

    with pytest.raises(ConfigError, match=next(iter(wrong))):
        arrival_times(5, **settings)


def test_prompts_have_their_length_and_differ_from_the_first_word() -> None:
    texts = Prompts(1).draw_spread(20, 30, 700)

    assert {len(text.split()) + 5 for text in texts} <= set(range(30, 701))
    assert len({text.split()[0] for text in texts}) == 20


def test_a_spread_of_lengths_reaches_over_its_range_in_any_order() -> None:
    workload = closed_workload(20, Lengths(30, 700, 8), 4, seed=3)

    asks = list(workload.asks())

    num_words = [len(ask.prompt.split()) for ask in asks]
    assert sorted(num_words) != num_words
    assert min(num_words) < 60
    assert max(num_words) > 670
    assert {ask.num_output_tokens for ask in asks} == {8}
    assert "20 requests of 30-700+8" in workload.about


def test_prompts_that_share_hashes_share_words() -> None:
    first = prompt_of_blocks([1, 2, 3], 1200).split()
    other = prompt_of_blocks([1, 2, 9], 1300).split()

    assert (len(first), len(other)) == (1200, 1300)
    assert first[:1024] == other[:1024]
    assert first[1024:1100] != other[1024:1100]


def test_a_block_that_is_cut_is_the_head_of_the_whole_block() -> None:
    assert prompt_of_blocks([5], 512).startswith(prompt_of_blocks([5], 100))


def test_a_trace_becomes_requests_with_times() -> None:
    lines = [json.dumps(LINE), "", json.dumps({**LINE, "timestamp": 1500})]

    requests = parse_trace(lines)
    ask = requests[1].to_ask(speed=2.0)

    assert len(requests) == 2
    assert (ask.at_s, ask.num_output_tokens) == (0.75, 5)
    assert len(ask.prompt.split()) == 600


def test_a_trace_is_read_to_its_limit_only(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps(LINE) + "\nthis line is never reached\n")

    assert len(read_trace(path, limit=1)) == 1


def test_an_empty_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n")

    with pytest.raises(ConfigError, match="no request in it"):
        read_trace(path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "not an object"),
        ({"timestamp": -1}, "timestamp -1"),
        ({"timestamp": "0"}, "timestamp '0'"),
        ({"input_length": 0}, "input_length 0"),
        ({"output_length": 1.5}, "output_length 1.5"),
        ({"output_length": True}, "output_length True"),
        ({"hash_ids": "7"}, "hash_ids is not a list"),
        ({"hash_ids": [7]}, "stand for 512 tokens, input_length is 600"),
    ],
)
def test_a_wrong_line_of_a_trace_is_named(wrong: str | dict[str, Any], message: str) -> None:
    line = wrong if isinstance(wrong, str) else json.dumps({**LINE, **wrong})

    with pytest.raises(ConfigError, match=f"line 2 of the trace: .*{message}"):
        parse_trace([json.dumps(LINE), line])


@pytest.mark.parametrize("name", sorted(LINE))
def test_a_trace_line_without_a_field_is_named(name: str) -> None:
    line = json.dumps({key: value for key, value in LINE.items() if key != name})

    with pytest.raises(ConfigError, match=f"line 1 of the trace: {name} is missing"):
        parse_trace([line])


def test_a_trace_that_goes_back_in_time_is_refused() -> None:
    lines = [json.dumps({**LINE, "timestamp": 9}), json.dumps({**LINE, "timestamp": 8})]

    with pytest.raises(ConfigError, match="timestamp 8 is before 9"):
        parse_trace(lines)


def test_times_of_one_answer() -> None:
    answer = outcome(0.2, 0.3, 0.6, ended_s=0.7, tokens=6)

    assert answer.ttft_s == pytest.approx(0.2)
    assert answer.tpot_s == pytest.approx(0.1)
    assert answer.gaps_s == pytest.approx([0.1, 0.3])


def test_an_answer_of_one_token_has_no_time_per_token() -> None:
    assert outcome(0.2, ended_s=0.2, tokens=1).tpot_s is None


def test_figures_count_answers_errors_and_what_was_cut_short_apart() -> None:
    outcomes = [
        outcome(0.1, 0.2, ended_s=0.2, tokens=2),
        outcome(0.4, 1.0, ended_s=1.0, tokens=2),
        outcome(ended_s=0.1, tokens=0, error="overloaded"),
        outcome(0.1, ended_s=2.0, tokens=0, error=REASON_CUT_SHORT),
    ]
    load = Load("grpc", 4, elapsed_s=2.0, client_cpu_s=0.5, outcomes=outcomes)

    figures = load_figures(load, Slo(ttft_ms=300, tpot_ms=150))

    assert (figures["requests"], figures["failed"], figures["cut_short"]) == (2, 1, 1)
    assert figures["errors"] == {"overloaded": 1}
    assert figures["tokens_per_s"] == 2.0
    assert figures["ttft_ms_p50"] == 250.0
    assert figures["goodput_requests_per_s"] == 0.5
    assert figures["good_share"] == pytest.approx(1 / 3, abs=1e-4)
    assert figures["client_cpu_ms_per_token"] == 125.0


def test_figures_of_a_load_without_answers_are_empty_not_zero() -> None:
    failed = outcome(ended_s=0.1, tokens=0, error="unavailable")

    figures = load_figures(Load("http", 1, 1.0, 0.0, [failed]), Slo(ttft_ms=1))

    assert figures["ttft_ms_p50"] is None
    assert figures["goodput_requests_per_s"] == 0.0
    assert json.loads(json.dumps(figures)) == figures


@pytest.mark.parametrize(
    ("slo", "is_met"),
    [
        (Slo(), True),
        (Slo(ttft_ms=200, tpot_ms=100, e2e_ms=700), True),
        (Slo(ttft_ms=199), False),
        (Slo(tpot_ms=99), False),
        (Slo(e2e_ms=699), False),
    ],
)
def test_an_answer_is_good_within_every_limit(slo: Slo, is_met: bool) -> None:
    answer = outcome(0.2, 0.7, ended_s=0.7, tokens=6)
    answer.started_s = 0.0

    assert slo.is_met(answer) is is_met


def test_a_service_level_is_read_from_its_text() -> None:
    assert parse_slo("ttft=500, tpot=50") == Slo(ttft_ms=500.0, tpot_ms=50.0)


@pytest.mark.parametrize("text", ["", "itl=5", "ttft", "ttft=fast", "ttft=0", "tpot=inf"])
def test_a_wrong_service_level_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="slo:"):
        parse_slo(text)
