"""The sampler against a slow, independent one in plain Python, and Philox against known answers."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
import torch

from millrace.core.sampling import SamplingSpec
from millrace.engine.sampler import Sampler, SampleRow, truncation
from millrace.engine.sampler.gumbel import MAX_NOISE, noise_of
from millrace.engine.sampler.philox import philox4x32, token_words

VOCAB_SIZE = 160

# Random123's published vectors for philox4x32 with 10 rounds: counter, key, output.
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words_of(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def python_philox(counter: list[int], key: list[int]) -> list[int]:
    """One block, straight from the definition."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high_0, low_0 = divmod(c[0] * 0xD2511F53, 2**32)
        high_1, low_1 = divmod(c[2] * 0xCD9E8D57, 2**32)
        c = [high_1 ^ c[1] ^ k[0], low_1, high_0 ^ c[3] ^ k[1], low_0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def array_philox(counter: list[int], key: list[int]) -> list[int]:
    parts = [np.array([word], dtype=np.uint64) for word in [*counter, *key]]
    left, right = philox4x32(*parts)
    return [int(left[0]) >> 32, int(left[0]) % 2**32, int(right[0]) >> 32, int(right[0]) % 2**32]


def python_gumbel(seed: int, position: int, choice: int, token_id: int) -> float:
    words = python_philox([position, choice, token_id, 0], [seed % 2**32, seed >> 32])
    uniform = ((((words[0] << 32) | words[1]) >> 12) + 0.5) / 2**52
    return -math.log(-math.log(uniform))


def python_edit(logits: list[float], row: SampleRow) -> list[float]:
    """Penalties, bias and pending stops in float32 steps."""
    spec, f32 = row.spec, np.float32
    edited = [f32(x) for x in logits]
    for token_id in set(row.token_ids):
        x = edited[token_id]
        penalty = f32(spec.repetition_penalty)
        edited[token_id] = x / penalty if x > 0 else x * penalty
    output = row.token_ids[row.num_prompt_tokens :]
    for token_id, count in Counter(output).items():
        edited[token_id] -= f32(spec.frequency_penalty) * f32(count)
        edited[token_id] -= f32(spec.presence_penalty)
    for token_id, bias in spec.logit_bias:
        edited[token_id] += f32(bias)
    if len(output) < spec.min_tokens:
        for token_id in row.stop_token_ids:
            edited[token_id] = f32(-math.inf)
    return [float(x) for x in edited]


def python_kept(logits: list[float], spec: SamplingSpec) -> list[int]:
    """The ids that truncation keeps, by a full sort."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    if 0 < spec.top_k < len(order):
        order = [i for i in order if logits[i] >= logits[order[spec.top_k - 1]]]
    weights = {i: math.exp((logits[i] - logits[order[0]]) / spec.temperature) for i in order}
    if spec.top_p < 1:
        total, before, kept = math.fsum(weights.values()), 0.0, []
        for i in order:
            if before < spec.top_p * total:
                kept.append(i)
            before += weights[i]
        order = kept
    return [i for i in order if weights[i] >= spec.min_p]


def python_sample(logits: list[float], row: SampleRow) -> int:
    edited = python_edit(logits, row)
    if row.spec.is_greedy:
        return min(range(len(edited)), key=lambda i: (-edited[i], i))
    scores = {
        i: edited[i] / row.spec.temperature
        + python_gumbel(row.spec.seed, len(row.token_ids), row.choice, i)
        for i in python_kept(edited, row.spec)
    }
    return max(scores, key=lambda i: (scores[i], -i))


def random_row(rng: random.Random) -> SampleRow:
    spec = SamplingSpec(
        temperature=rng.choice([0.0, 0.3, 0.8, 1.0, 1.7]),
        top_p=rng.choice([1.0, 1.0, 0.95, 0.6, 1e-6]),
        top_k=rng.choice([0, 0, 1, 5, 40, 159, 160, 1000]),
        min_p=rng.choice([0.0, 0.0, 0.02, 0.3, 1.0]),
        repetition_penalty=rng.choice([1.0, 1.3, 0.7]),
        presence_penalty=rng.choice([0.0, 0.5, -1.5]),
        frequency_penalty=rng.choice([0.0, 0.25, -0.5]),
        logit_bias=tuple((rng.randrange(VOCAB_SIZE), rng.uniform(-9, 9)) for _ in range(3)),
        seed=rng.getrandbits(64),
        min_tokens=rng.choice([0, 30]),
    )
    tokens = [rng.randrange(VOCAB_SIZE) for _ in range(rng.randrange(1, 60))]
    return SampleRow(spec, tokens, rng.randrange(len(tokens)), rng.randrange(16), (3, 77))


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_published_answers(counter: str, key: str, expected: str) -> None:
    assert array_philox(words_of(counter), words_of(key)) == words_of(expected)
    assert python_philox(words_of(counter), words_of(key)) == words_of(expected)


def test_philox_equals_definition_on_random_counters() -> None:
    rng = random.Random(5)
    for _ in range(200):
        counter = [rng.getrandbits(32) for _ in range(4)]
        key = [rng.getrandbits(32) for _ in range(2)]
        assert array_philox(counter, key) == python_philox(counter, key)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1, 0x0123456789ABCDEF])
def test_one_draws_words_equal_definition(seed: int) -> None:
    rng = random.Random(seed)
    for position, choice in [(0, 0), (131071, 15), (2**32 - 1, 2**32 - 1)]:
        ids = [0, 1, 2**17 + 1, 2**32 - 1, *(rng.randrange(200_000) for _ in range(20))]
        words = token_words(seed, position, choice, np.array(ids, dtype=np.uint64))
        for token_id, word in zip(ids, words, strict=True):
            block = python_philox([position, choice, token_id, 0], [seed % 2**32, seed >> 32])
            assert int(word) == (block[0] << 32) | block[1]


def test_noise_is_finite_at_both_ends_of_the_uniform_range() -> None:
    noise = noise_of(np.array([0, 2**64 - 1], dtype=np.uint64))

    assert np.isfinite(noise).all()
    assert noise[0] == pytest.approx(-math.log(53 * math.log(2)), abs=1e-12)
    assert MAX_NOISE - 0.02 < noise[1] < MAX_NOISE


@pytest.mark.parametrize("window", [1, 128, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampler_equals_plain_python_on_random_specs(
    window: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(truncation, "NUCLEUS_WINDOW", window)
    rng = random.Random(11)
    torch.manual_seed(11)
    logits = (torch.randn(300, VOCAB_SIZE) * 3).to(dtype)
    rows = [random_row(rng) for _ in range(len(logits))]

    sampled = Sampler(VOCAB_SIZE).sample(logits, rows)

    expected = [python_sample(x.float().tolist(), row) for x, row in zip(logits, rows, strict=True)]
    assert [s.token_id for s in sampled] == expected


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_leaving_out_hopeless_tokens_changes_no_draw(temperature: float) -> None:
    """A wide range of logits, so that most tokens cannot win; plain Python looks at all of them."""
    torch.manual_seed(3)
    logits = torch.randn(40, VOCAB_SIZE) * 20
    spec = SamplingSpec(temperature=temperature, seed=9)
    rows = [SampleRow(spec, [0] * n, 0, 0, ()) for n in range(len(logits))]

    sampled = Sampler(VOCAB_SIZE).sample(logits, rows)

    expected = [python_sample(x.tolist(), row) for x, row in zip(logits, rows, strict=True)]
    assert [s.token_id for s in sampled] == expected
