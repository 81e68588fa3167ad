"""Paged attention of the kernels against float64, and bit by bit against itself."""

from __future__ import annotations

import numpy as np
import pytest

from millrace.engine.kernels.cpu.library import INT8, KV_KINDS
from tests.unit.engine.cpu import reference
from tests.unit.engine.cpu.kernel_calls import Cache, Shape

GROUPS = range(1, 9)
HEAD_SIZES = (16, 24, 64, 80, 96, 100, 128, 256)
FEATURES = ("plain", "window", "softcap", "sinks", "all")


def draw_shape(rng, group, feature):
    kv_heads = int(rng.integers(1, 4))
    key_dim = int(rng.choice(HEAD_SIZES))
    value_dim = key_dim if rng.random() < 0.7 else int(rng.choice(HEAD_SIZES))
    shape = Shape(group * kv_heads, kv_heads, key_dim, value_dim)
    if feature in ("window", "all"):
        shape.window = int(rng.choice([1, 5, 32, 100, 300]))
    if feature in ("softcap", "all"):
        shape.softcap = float(rng.uniform(1.0, 30.0))
    if feature in ("sinks", "all"):
        shape.sinks = rng.standard_normal(shape.num_heads).astype(np.float32) * 3
    return shape


def draw_tokens(rng, shape, length):
    """q, k and v of a sequence; scores reach about +-8."""
    q, k, v = (rng.standard_normal((length, *size)).astype(np.float32) for size in shape.sizes)
    return q * np.float32(rng.uniform(0.5, 3.0)), k, v


def expected_of(tokens, shape, kind, path):
    return reference.attend(
        tokens.q,
        tokens.k,
        tokens.v,
        kind,
        reference.attention_inputs(kind, path),
        shape.scale,
        shape.window,
        shape.softcap,
        shape.sinks,
    )


def run_in_cuts(rng, cache, sequences):
    """All sequences to their ends, in batches of chunks of any size."""
    while left := [s for s in sequences if s.done < len(s.q)]:
        chosen = [s for s in left if rng.random() < 0.8] or left
        rest = [len(s.q) - s.done for s in chosen]
        counts = [1 if rng.random() < 0.3 else int(rng.integers(1, most + 1)) for most in rest]
        cache.attend(*zip(chosen, counts, strict=True))


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("kind", KV_KINDS)
def test_attention_equals_float64(runner, rng, kind, feature):
    groups = rng.choice(GROUPS, 2) if runner.is_slow else GROUPS
    for group in groups:
        shape = draw_shape(rng, int(group), feature)
        tiles = int(rng.integers(1, 3))
        cache = Cache(runner, KV_KINDS[kind], shape, rng, 24, tiles)
        longest = 100 if runner.is_slow else 330
        lengths = [1, 33, int(rng.integers(2, 200)), int(rng.integers(30, longest))]
        sequences = [cache.add(*draw_tokens(rng, shape, length)) for length in lengths]

        run_in_cuts(rng, cache, sequences)

        for tokens in sequences:
            expected, allowed = expected_of(tokens, shape, KV_KINDS[kind], runner.path)
            wrong = ~(np.abs(tokens.out - expected) <= allowed)
            assert not wrong.any(), (
                f"{shape}, {len(tokens.q)} tokens: {wrong.sum()} wrong of {wrong.size}, "
                f"at {np.argwhere(wrong)[:3]}"
            )


@pytest.mark.parametrize("window", [0, 300])
@pytest.mark.parametrize("kind", KV_KINDS)
def test_token_is_the_same_in_any_cut_batch_and_team(runner, rng, kind, window):
    shape = draw_shape(rng, int(rng.integers(1, 9)), "plain")
    shape.key_dim, shape.value_dim, shape.window = 64, 64, window
    length = 290 if runner.is_slow else 700
    drawn = draw_tokens(rng, shape, length)

    def compute(cuts, team_size, others=()):
        cache = Cache(runner, KV_KINDS[kind], shape, rng, 80)
        tokens = cache.add(*drawn)
        beside = [cache.add(*other) for other in others]
        for cut in cuts:
            work = [(other, 1 + other.done % 3) for other in beside if other.done < 150]
            at = int(rng.integers(len(work) + 1))
            cache.attend(*work[:at], (tokens, cut), *work[at:], team_size=team_size)
        return tokens.out

    whole = compute([length], 1)
    last = length - 7
    ragged = np.diff([0, *sorted(rng.choice(np.arange(1, last), 9, replace=False)), last]).tolist()
    # One row alone over several pieces: the members of a team share its keys.
    assert np.array_equal(compute([last, *[1] * 7], 2), whole)
    assert np.array_equal(compute([*ragged, 7], 3), whole)
    others = [draw_tokens(rng, shape, 300) for _ in range(4)]
    assert np.array_equal(compute([*ragged, *[1] * 7], 2, others), whole)


def test_long_context_equals_float64_whoever_takes_its_pieces(runner, rng):
    shape = Shape(6, 2, 64, 64)
    length = 300 if runner.is_slow else 1300
    for kind in KV_KINDS.values():
        cache = Cache(runner, kind, shape, rng, 80)
        tokens = cache.add(*draw_tokens(rng, shape, length))
        cache.attend((tokens, length - 1), team_size=1)
        cache.attend((tokens, 1), team_size=2)

        expected, allowed = expected_of(tokens, shape, kind, runner.path)
        assert (np.abs(tokens.out - expected) <= allowed).all()


def test_more_heads_than_an_item_holds_are_refused(runner, rng):
    cache = Cache(runner, INT8, Shape(49, 1, 32, 32), rng)
    tokens = cache.add(*draw_tokens(rng, cache.shape, 3))

    with pytest.raises(AssertionError, match="error code 2"):
        cache.attend((tokens, 3))
