"""Thousands of draws against exact probabilities, by Pearson's chi-square test."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch

from millrace.core.sampling import SamplingSpec
from millrace.engine.sampler import Sampler, SampleRow

NUM_DRAWS = 6000
BATCH_SIZE = 100


def logits_of(vocab_size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(vocab_size)
    return torch.randn(vocab_size, generator=generator) * 1.5


def exact_probabilities(logits: torch.Tensor, spec: SamplingSpec) -> npt.NDArray[np.float64]:
    """Softmax, and each truncation by masking and normalising anew, in float64."""
    scaled = logits.double().numpy() / spec.temperature
    weights = np.exp(scaled - scaled.max())
    if spec.top_k:
        weights[np.argsort(-weights)[spec.top_k :]] = 0
    weights /= weights.sum()
    order = np.argsort(-weights)
    before = np.cumsum(weights[order]) - weights[order]
    weights[order[before >= spec.top_p]] = 0
    weights[weights < spec.min_p * weights.max()] = 0
    probabilities: npt.NDArray[np.float64] = weights / weights.sum()
    return probabilities


def draws(logits: torch.Tensor, spec: SamplingSpec, *, choice: int = 0) -> list[int]:
    """`NUM_DRAWS` draws from one distribution, at consecutive positions."""
    sampler = Sampler(len(logits))
    batch = logits.expand(BATCH_SIZE, -1)
    drawn: list[int] = []
    for start in range(0, NUM_DRAWS, BATCH_SIZE):
        rows = [
            SampleRow(spec, [0] * position, 0, choice, ())
            for position in range(start, start + BATCH_SIZE)
        ]
        drawn.extend(sampled.token_id for sampled in sampler.sample(batch, rows))
    return drawn


def assert_fits(counts: npt.NDArray[np.int64], expected: npt.NDArray[np.float64]) -> None:
    """Pearson's statistic is below its 1 - 1e-5 quantile; rare cells are taken together."""
    rare = expected < 8
    cells = np.append(expected[~rare], expected[rare].sum())
    seen = np.append(counts[~rare], counts[rare].sum())
    if cells[-1] < 8:
        cells, seen = cells[:-1], seen[:-1]
    statistic = float(((seen - cells) ** 2 / cells).sum())
    freedom = max(len(cells) - 1, 1)
    # Wilson and Hilferty's approximation; 4.265 is the normal quantile.
    limit = freedom * (1 - 2 / (9 * freedom) + 4.265 * math.sqrt(2 / (9 * freedom))) ** 3
    assert statistic < limit, f"chi-square {statistic:.1f} over {limit:.1f} at {freedom} degrees"


@pytest.mark.parametrize(
    "spec",
    [
        SamplingSpec(temperature=1.0, seed=1),
        SamplingSpec(temperature=0.6, seed=2),
        SamplingSpec(temperature=1.8, seed=3),
        SamplingSpec(temperature=1.0, top_k=12, seed=4),
        SamplingSpec(temperature=1.0, top_p=0.8, seed=5),
        SamplingSpec(temperature=1.0, min_p=0.1, seed=6),
        SamplingSpec(temperature=0.8, top_k=30, top_p=0.9, min_p=0.05, seed=2**64 - 1),
    ],
    ids=["plain", "cold", "hot", "top_k", "top_p", "min_p", "all"],
)
@pytest.mark.parametrize("vocab_size", [50, 200])
def test_draws_follow_exact_distribution(spec: SamplingSpec, vocab_size: int) -> None:
    logits = logits_of(vocab_size)
    probabilities = exact_probabilities(logits, spec)

    counts = np.bincount(draws(logits, spec), minlength=vocab_size)

    assert counts[probabilities == 0].sum() == 0
    assert_fits(counts, probabilities * NUM_DRAWS)


def test_draws_over_large_vocabulary_follow_exact_distribution() -> None:
    """Over the limit up to which rows share a Philox pass, and over several chunks."""
    vocab_size = 60_000
    logits = torch.full((vocab_size,), -2.0)
    logits[::6000] = torch.linspace(6.0, 8.0, 10)
    spec = SamplingSpec(seed=77)
    sampler = Sampler(vocab_size)
    probabilities = exact_probabilities(logits, spec)
    favoured = probabilities[::6000]

    rows = [SampleRow(spec, [0] * n, 0, 0, ()) for n in range(1000)]
    ids = np.array([sampler.sample(logits[None], [row])[0].token_id for row in rows])

    counts = np.array([*(np.count_nonzero(ids == i) for i in range(0, vocab_size, 6000)), 0])
    counts[-1] = len(ids) - counts.sum()
    assert counts[-1] > 100
    assert_fits(counts, np.append(favoured, 1 - favoured.sum()) * len(ids))
    # Tokens of the flat rest come from every part of the vocabulary.
    rest = ids[ids % 6000 != 0] // 6000
    assert_fits(np.bincount(rest, minlength=10), np.full(10, len(rest) / 10))


def test_choices_draw_independently() -> None:
    logits, spec = logits_of(50), SamplingSpec(seed=12)
    probabilities = exact_probabilities(logits, spec)

    first, second = draws(logits, spec, choice=0), draws(logits, spec, choice=1)

    same = sum(a == b for a, b in zip(first, second, strict=True))
    expected = float((probabilities**2).sum())
    assert_fits(np.array([same, NUM_DRAWS - same]), np.array([expected, 1 - expected]) * NUM_DRAWS)


def test_consecutive_positions_draw_independently() -> None:
    logits, spec = logits_of(50), SamplingSpec(seed=13)
    probabilities = exact_probabilities(logits, spec)

    ids = draws(logits, spec)

    same = sum(a == b for a, b in zip(ids, ids[1:], strict=False))
    expected = float((probabilities**2).sum())
    trials = NUM_DRAWS - 1
    assert_fits(np.array([same, trials - same]), np.array([expected, 1 - expected]) * trials)
