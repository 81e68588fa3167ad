"""Draws by the kernels: a token they decide is the one the sampler draws in numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from millrace.core.sampling import SamplingSpec
from millrace.engine.kernels.cpu.drawer import UNDECIDED, draw_struct
from millrace.engine.kernels.cpu.library import DrawStruct
from millrace.engine.sampler import DrawRequest, Sampler, SampleRow
from millrace.engine.sampler.gumbel import noise_of
from millrace.engine.sampler.philox import token_words
from tests.unit.engine.cpu.kernel_runner import TEAM, KernelRunner

Floats = npt.NDArray[np.float32]

SPECS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7},
    {"temperature": 0.15},
    {"temperature": 2.0},
    {"top_p": 0.95},
    {"top_p": 0.4, "temperature": 1.3},
    {"top_p": 0.02},
    {"top_k": 50},
    {"top_k": 1},
    {"top_k": 700},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.01},
]
POSITION, CHOICE = 7, 1
# Seeds and tokens whose first random word is 2^32 - 1 at `POSITION` and `CHOICE`: noise over 22.
RARE = [(73149, 32533), (264404, 22384), (281264, 45806), (353296, 7436), (369726, 44025)]


def kernel_tokens(
    runner: KernelRunner, logits: Floats, requests: Sequence[DrawRequest], team_size: int = 2
) -> list[int]:
    """What the kernels draw; logits between guards, and the last token's place is not written."""
    rows, vocab = logits.shape
    wide = np.full((rows, vocab + 3), 1e9, np.float32)
    wide[:, :vocab] = logits
    before = wide.copy()
    tokens = np.full(len(requests) + 1, -7, np.int64)
    structs = (DrawStruct * len(requests))(*map(draw_struct, requests))
    args = (TEAM, wide, wide.size, vocab + 3, vocab, structs, len(requests), tokens)
    assert runner.call("mr_draw_tokens", *args, team_size=team_size) == 0
    assert tokens[-1] == -7, "written behind the last token"
    assert np.array_equal(wide, before, equal_nan=True)
    return [int(token) for token in tokens[:-1]]


def numpy_tokens(logits: Floats, requests: Sequence[DrawRequest]) -> list[int]:
    """What the sampler draws without a drawer."""
    sampler = Sampler(logits.shape[1])
    rows = [SampleRow(r.spec, [0] * r.position, 0, r.choice, ()) for r in requests]
    raw = torch.from_numpy(logits[[r.row for r in requests]])
    return [sampled.token_id for sampled in sampler.sample(raw, rows)]


def check_equal(
    runner: KernelRunner, logits: Floats, requests: Sequence[DrawRequest], max_undecided: float
) -> None:
    """`max_undecided` is the share of draws that the kernels may leave to the sampler."""
    got = kernel_tokens(runner, logits, requests)
    expected = numpy_tokens(logits, requests)
    wrong = [i for i, token in enumerate(got) if token not in (UNDECIDED, expected[i])]
    assert not wrong, [(got[i], expected[i], requests[i]) for i in wrong[:3]]
    undecided = [requests[i] for i, token in enumerate(got) if token == UNDECIDED]
    assert len(undecided) <= max_undecided * len(got), undecided[:3]


def request(rng: np.random.Generator, row: int, **spec: Any) -> DrawRequest:
    seed = int(rng.integers(2**64, dtype=np.uint64))
    position, choice = int(rng.integers(1, 4000)), int(rng.integers(16))
    return DrawRequest(row, SamplingSpec(seed=seed, **spec), position, choice)


def random_logits(rng: np.random.Generator, rows: int, vocab: int) -> Floats:
    """Rows from nearly flat to steep, some with a heavy head as models have."""
    width = rng.choice([0.05, 1.0, 3.0, 8.0], (rows, 1))
    logits = rng.standard_normal((rows, vocab)) * width + rng.normal(0, 20, (rows, 1))
    logits += (rng.random((rows, vocab)) < 0.002) * rng.exponential(6.0, (rows, vocab))
    wide: Floats = logits.astype(np.float32)
    return wide


@pytest.mark.parametrize(
    ("vocab", "rows"),
    [(1, 4), (2, 8), (31, 40), (513, 40), (5000, 20), (49_152, 4), (151_936, 2)],
)
def test_token_is_the_samplers(runner, rng, vocab, rows):
    if runner.is_slow and vocab > 100_000:
        rows = 1
    logits = random_logits(rng, rows, vocab)
    requests = [request(rng, row, **spec) for row in range(rows) for spec in SPECS]

    # Two rows of the same few tokens may be undecided together.
    check_equal(runner, logits, requests, max_undecided=0.05)


def test_thousands_of_draws_are_the_samplers(runner, rng):
    rows = 60 if runner.is_slow else 400
    logits = random_logits(rng, rows, 900)
    check_equal(
        runner,
        logits,
        [request(rng, row, **spec) for row in range(rows) for spec in SPECS],
        max_undecided=0.02,
    )


@pytest.mark.parametrize(("rows", "vocab"), [(2000, 300), (200, 20_000)])
def test_close_seconds_are_told_apart_or_left_undecided(runner, rng, rows, vocab):
    """A second token is moved to where it wins or loses by about what float32 can tell."""
    rows = rows // 10 if runner.is_slow else rows
    # Where many tokens are about as likely the bound on the winner's ratio is tightest.
    is_flat = vocab > 10_000
    logits = (
        rng.standard_normal((rows, vocab)).astype(np.float32) / 8
        if is_flat
        else random_logits(rng, rows, vocab)
    )
    temperatures = rng.choice([0.3, 1.0, 1.7], rows)
    requests = [request(rng, row, temperature=float(temperatures[row])) for row in range(rows)]
    for row, asked in enumerate(requests):
        ids = np.arange(vocab, dtype=np.uint64)
        words = token_words(asked.spec.seed, asked.position, asked.choice, ids)
        noise = noise_of(words) * temperatures[row]
        winner = int((logits[row] + noise).argmax())
        # One that needs no more than the peak has.
        second = int(rng.choice(np.argsort(noise)[-20:]))
        target = logits[row, winner] + noise[winner] - noise[second]
        # The peak may not move: all scores are counted from it.
        if second not in (winner, logits[row].argmax()) and target < logits[row].max():
            logits[row, second] = target + rng.choice([0.0, 1e-6, -1e-6, 1e-5, -1e-5, 1e-4])

    check_equal(runner, logits, requests, max_undecided=0.05)


@pytest.mark.parametrize(("seed", "token"), RARE)
def test_token_with_the_rarest_noise_wins_where_it_must(runner, rng, seed, token):
    vocab = 49_152
    words = token_words(seed, POSITION, CHOICE, np.arange(vocab, dtype=np.uint64))
    assert int(words[token]) >> 32 == 2**32 - 1
    noise = noise_of(words)
    assert noise[token] > 22.0
    logits = np.full((1, vocab), -200.0, np.float32)
    logits[0, 5] = 3.0
    asked = [DrawRequest(0, SamplingSpec(seed=seed), POSITION, CHOICE)]
    for margin, expected in ((0.01, token), (-0.01, 5)):
        logits[0, token] = 3.0 + noise[5] - noise[token] + margin

        assert kernel_tokens(runner, logits, asked) == numpy_tokens(logits, asked) == [expected]


def test_ends_of_top_p_are_the_samplers(runner, rng):
    """top_p ends beside the winner's own share, and exactly there."""
    rows, vocab = 40 if runner.is_slow else 400, 300
    logits = random_logits(rng, rows, vocab).round(1)
    requests = []
    for row in range(rows):
        plain = request(rng, row)
        winner = numpy_tokens(logits[[row]], [DrawRequest(0, plain.spec, plain.position, 0)])[0]
        weights = np.exp(logits[row].astype(np.float64) - logits[row].max())
        ids = np.arange(vocab)
        ties = (logits[row] == logits[row, winner]) & (ids < winner)
        before = weights[(logits[row] > logits[row, winner]) | ties].sum() / weights.sum()
        top_p = min(max(before * (1 + rng.choice([0, 1e-13, -1e-13, 1e-5, -1e-5, 1e-3])), 1e-9), 1)
        spec = SamplingSpec(seed=plain.spec.seed, top_p=float(top_p))
        requests.append(DrawRequest(row, spec, plain.position, 0))

    check_equal(runner, logits, requests, max_undecided=0.9)


def test_ends_of_min_p_are_the_samplers(runner, rng):
    rows, vocab = 40 if runner.is_slow else 400, 60
    logits = random_logits(rng, rows, vocab)
    gaps = logits.max(axis=1, keepdims=True).astype(np.float64) - logits
    requests = []
    for row in range(rows):
        weight = math.exp(-float(np.sort(gaps[row])[rng.integers(5)]))
        min_p = min(weight * (1 + rng.choice([0, 1e-16, 1e-13, -1e-13, 1e-7, -1e-7])), 1.0)
        requests.append(request(rng, row, min_p=float(min_p)))

    check_equal(runner, logits, requests, max_undecided=0.5)


@pytest.mark.parametrize("vocab", [64, 1000, 9001])
def test_ties_are_the_samplers(runner, rng, vocab):
    rows = 4 if runner.is_slow else 25
    logits = rng.integers(-3, 4, (rows, vocab)).astype(np.float32)
    logits[0] = 0.0
    requests = [request(rng, row, **spec) for row in range(rows) for spec in SPECS]

    check_equal(runner, logits, requests, max_undecided=0.1)


def test_values_that_float64_cannot_tell_apart_are_the_samplers(runner, rng):
    """Different logits, the same distance to the peak in float64."""
    rows, vocab = 30, 200
    logits = (rng.standard_normal((rows, vocab)) * 1e-18).astype(np.float32)
    logits[:, 77] = 2.0
    specs: list[dict[str, Any]] = [
        {"top_p": 0.9, "temperature": 1.9},
        {"top_p": 0.3},
        {"top_k": 9},
        {"min_p": 0.1},
    ]
    requests = [request(rng, row, **spec) for row in range(rows) for spec in specs]

    check_equal(runner, logits, requests, max_undecided=0.05)


@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan])
def test_logits_that_are_no_numbers_are_the_samplers(runner, rng, value):
    vocab = 77
    logits = random_logits(rng, vocab + 2, vocab)
    logits[range(vocab), range(vocab)] = value
    logits[vocab] = value
    logits[vocab + 1, rng.random(vocab) < 0.9] = value
    requests = [request(rng, row, **SPECS[row % len(SPECS)]) for row in range(len(logits))]

    # Impossible tokens are ordinary; only a row without any other is not.
    check_equal(runner, logits, requests, max_undecided=0.1 if value == -math.inf else 1.0)


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e-7, 1e-5, 1e-3, 1e3, 1e5, 1e30, 1e300])
def test_tiny_and_huge_temperatures_are_the_samplers(runner, rng, temperature):
    rows = 3 if runner.is_slow else 20
    logits = random_logits(rng, rows, 500)
    specs: list[dict[str, Any]] = [{}, {"top_p": 0.9}, {"top_k": 20}, {"min_p": 0.2}]
    requests = [
        request(rng, row, temperature=temperature, **spec) for row in range(rows) for spec in specs
    ]

    is_plain = 1e-6 <= temperature <= 1e6
    check_equal(runner, logits, requests, max_undecided=0.15 if is_plain else 1.0)


@pytest.mark.parametrize("top_k", [1, 20, 50, 200])
def test_few_tokens_that_may_come_at_all_are_the_samplers(runner, rng, top_k):
    """Also fewer than top_k, so that the last that it keeps has no weight."""
    rows = 6 if runner.is_slow else 20
    logits = np.full((rows, 5000), -np.inf, np.float32)
    for row in logits:
        row[rng.choice(5000, 30, replace=False)] = rng.standard_normal(30)
    requests = [request(rng, row, top_k=top_k, temperature=2.0) for row in range(rows)]

    check_equal(runner, logits, requests, max_undecided=0.2)


def test_huge_logits_are_the_samplers(runner, rng):
    rows = 20
    logits = random_logits(rng, rows, 100) * np.float32(1e36)
    requests = [request(rng, row, **SPECS[row % len(SPECS)]) for row in range(rows)]

    check_equal(runner, logits, requests, max_undecided=0.5)


def test_draw_is_the_same_alone_and_in_any_crowd(runner, rng):
    rows = 6 if runner.is_slow else 30
    logits = random_logits(rng, rows, 2000)
    requests = [request(rng, row, **SPECS[row % len(SPECS)]) for row in range(rows)]
    together = kernel_tokens(runner, logits, requests)

    order = rng.permutation(rows)
    shuffled = kernel_tokens(runner, logits, [requests[i] for i in order], team_size=3)
    alone = [kernel_tokens(runner, logits, [asked], team_size=1)[0] for asked in requests]

    assert alone == together
    assert shuffled == [together[i] for i in order]
