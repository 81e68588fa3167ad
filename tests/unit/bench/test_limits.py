"""Shares of what the machine can do."""

from __future__ import annotations

import pytest
from scripts.bench.limits import Cost, Rates, percent, speed_figures
from scripts.bench.linears import linear_cost
from scripts.bench.model_shapes import seen_tokens

RATES = Rates(read_gb_per_s=50.0, multiply_tflops=0.4)


def test_reading_and_multiplying_overlap_and_the_longer_one_is_the_limit() -> None:
    reads = Cost(num_bytes=100e6, num_flops=0.2e9)
    assert reads.limit_s(RATES) == pytest.approx(2e-3)
    assert reads.bound(RATES) == "read"
    multiplies = Cost(num_bytes=100e6, num_flops=4e9)
    assert multiplies.limit_s(RATES) == pytest.approx(10e-3)
    assert multiplies.bound(RATES) == "multiply"


def test_share_is_the_limit_over_the_time_taken() -> None:
    assert percent(2e-3, 2.5e-3) == 80.0
    with pytest.raises(ValueError, match="no time"):
        percent(2e-3, 0.0)


def test_figures_of_a_multiply_bound_call_keep_the_share_of_reading_apart() -> None:
    figures = speed_figures(Cost(num_bytes=100e6, num_flops=4e9), 20e-3, RATES)
    assert figures == {
        "gb_per_s": 5.0,
        "tflops": 0.2,
        "read_gb_per_s": 50.0,
        "multiply_tflops": 0.4,
        "read_share_percent": 10.0,
        "limit_share_percent": 50.0,
        "bound": "multiply",
    }


def test_linear_layer_reads_its_weights_once_whatever_the_rows() -> None:
    one, many = (linear_cost(1000, rows, columns=20, k=10) for rows in (1, 8))
    assert many.num_bytes - one.num_bytes == 7 * 4 * 30
    assert many.num_flops == 8 * one.num_flops == 8 * 2 * 200


@pytest.mark.parametrize(("num_new", "context"), [(1, 300), (5, 5), (3, 10)])
def test_each_new_token_sees_all_before_it_and_itself(num_new: int, context: int) -> None:
    expected = sum(range(context - num_new + 1, context + 1))
    assert seen_tokens(num_new, context) == expected
