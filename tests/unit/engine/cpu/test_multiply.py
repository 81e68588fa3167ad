"""The matrix product of the kernels against float64, and bit by bit against itself."""

from __future__ import annotations

import numpy as np
import pytest

from millrace.engine.kernels.cpu.library import KINDS
from tests.unit.engine.cpu import reference
from tests.unit.engine.cpu.kernel_calls import multiply, pack

# Columns and K around panels of 32 and rows of 64, and in between.
EDGES = (1, 31, 32, 33, 63, 64, 65, 96, 127, 129)
ROWS = (1, 2, 7, 12, 13, 16, 17, 31, 32, 33, 95, 97, 193, 257)


def shapes(rng, runner):
    """(rows, columns, k): edges first, then anything; few and small where calls are slow."""
    for rows in ROWS[: 9 if runner.is_slow else None : 3 if runner.is_slow else 1]:
        yield rows, int(rng.choice(EDGES)), int(rng.choice(EDGES))
    for _ in range(2 if runner.is_slow else 12):
        most = 40 if runner.is_slow else 257
        yield int(rng.integers(1, most + 1)), int(rng.integers(1, 300)), int(rng.integers(1, 700))


@pytest.mark.parametrize("kind", KINDS)
def test_product_equals_float64(runner, rng, kind):
    for rows, columns, k in shapes(rng, runner):
        weight = rng.standard_normal((columns, k)).astype(np.float32)
        x = rng.standard_normal((rows, k)).astype(np.float32)
        bias = rng.standard_normal(columns).astype(np.float32) if rng.random() < 0.7 else None

        got = multiply(runner, pack(runner, KINDS[kind], weight, bias), x)

        expected, allowed = reference.multiply(x, weight, bias, KINDS[kind], runner.path)
        wrong = ~(np.abs(got - expected) <= allowed)
        shape = f"{rows} rows, {columns} columns, k {k}"
        assert not wrong.any(), f"{shape}: {wrong.sum()} wrong, at {np.argwhere(wrong)[:3]}"


@pytest.mark.parametrize("kind", KINDS)
def test_row_is_the_same_alone_and_in_any_batch(runner, rng, kind):
    for _ in range(2 if runner.is_slow else 6):
        rows, columns, k = (int(rng.integers(1, most)) for most in (258, 200, 500))
        rows = min(rows, 40) if runner.is_slow else rows
        weight = rng.standard_normal((columns, k)).astype(np.float32)
        x = rng.standard_normal((rows, k)).astype(np.float32)
        packed = pack(runner, KINDS[kind], weight)
        together = multiply(runner, packed, x)

        cut = int(rng.integers(1, rows + 1))
        order = rng.permutation(rows)
        apart = [multiply(runner, packed, part) for part in (x[:cut], x[cut:]) if len(part)]
        assert np.array_equal(together, np.concatenate(apart)), (rows, columns, k, cut)
        assert np.array_equal(together[order], multiply(runner, packed, x[order], team_size=3))
        row = int(rng.integers(rows))
        assert np.array_equal(together[row], multiply(runner, packed, x[row : row + 1], 1)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_extremes_and_tiny_numbers_stay_finite(runner, kind):
    x = np.zeros((5, 70), np.float32)
    x[1, :2] = 1e-41, -3e-39  # no reciprocal in float32
    x[2] = 3e4
    x[3, 69] = -1.0
    x[4, ::2] = 1e-20
    weight = np.zeros((33, 70), np.float32)
    weight[1], weight[2, 5], weight[3] = 1.0, 1e-41, -2.0
    weight[32, 69] = 4.0

    got = multiply(runner, pack(runner, KINDS[kind], weight), x)

    assert np.isfinite(got).all()
    assert got[3, 32] == pytest.approx(-4.0, rel=0.005)
    assert not got[0].any()
    np.testing.assert_allclose(got[2, [1, 3]], [2.1e6, -4.2e6], rtol=5e-3)
