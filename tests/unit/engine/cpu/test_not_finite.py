"""What is no number stays none, in its own row alone: not in one of 8 bits, not in a neighbour."""

from __future__ import annotations

import numpy as np
import pytest

from millrace.engine.kernels.cpu.library import BF16, F32, INT4, INT8, KINDS, KV_KINDS
from tests.unit.engine.cpu.decoder_calls import Decoder
from tests.unit.engine.cpu.kernel_calls import Cache, Shape, multiply, pack

WRONG = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", KINDS)
def test_row_that_is_not_finite_has_no_finite_product_and_no_neighbour_changes(
    runner, rng, kind, wrong
):
    weight = rng.standard_normal((65, 150)).astype(np.float32)
    x = rng.standard_normal((5, 150)).astype(np.float32)
    packed = pack(runner, KINDS[kind], weight)
    clean = multiply(runner, packed, x)
    for place in (0, 31, 32, 149, int(rng.integers(150))):
        spoiled = x.copy()
        spoiled[2, place] = wrong

        got = multiply(runner, packed, spoiled)

        assert not np.isfinite(got[2]).any(), place
        assert np.array_equal(np.delete(got, 2, 0), np.delete(clean, 2, 0)), place


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", KINDS)
def test_weight_that_is_not_finite_spoils_its_column_alone(runner, rng, kind, wrong):
    weight = rng.standard_normal((65, 150)).astype(np.float32)
    x = rng.standard_normal((3, 150)).astype(np.float32)
    clean = multiply(runner, pack(runner, KINDS[kind], weight), x)
    for place in (0, 31, 32, 149):
        spoiled = weight.copy()
        spoiled[40, place] = wrong

        got = multiply(runner, pack(runner, KINDS[kind], spoiled), x)

        assert not np.isfinite(got[:, 40]).any(), place
        assert np.array_equal(np.delete(got, 40, 1), np.delete(clean, 40, 1)), place


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("what", ["q", "k", "v"])
@pytest.mark.parametrize("kind", KV_KINDS)
def test_token_that_is_not_finite_spoils_its_sequence_alone(runner, rng, kind, what, wrong):
    shape = Shape(4, 2, 40, 40, softcap=float(rng.choice([0.0, 8.0])))
    shape.sinks = rng.standard_normal(4).astype(np.float32) if rng.random() < 0.5 else None
    place = int(rng.integers(45))

    def compute(spoil: bool) -> list[np.ndarray]:
        cache = Cache(runner, KV_KINDS[kind], shape, np.random.default_rng(1), 24)
        draw = np.random.default_rng(2)
        rows = []
        for number, length in enumerate((50, 46, 7)):
            parts = [draw.standard_normal((length, *size), np.float32) for size in shape.sizes]
            if spoil and number == 1:
                parts["qkv".index(what)][place, 0, 5] = wrong
            rows.append(cache.add(*parts))
        cache.attend(*zip(rows, (49, 45, 6), strict=True))
        cache.attend(*((row, 1) for row in rows))
        return [row.out for row in rows]

    clean, got = compute(False), compute(True)

    assert np.array_equal(got[0], clean[0])
    assert np.array_equal(got[2], clean[2])
    # A cap makes a number of an infinite score; keys of 8 bits have no infinite ones.
    is_capped = shape.softcap > 0 and not np.isnan(wrong) and kind != "int8"
    # What the token asks for concerns it alone; its key and value all that come after it.
    if what == "q":
        assert is_capped or not np.isfinite(got[1][place, 0]).any()
        assert np.array_equal(np.delete(got[1], place, 0), np.delete(clean[1], place, 0))
    elif what == "k" and not np.isnan(wrong) and kind != "int8":
        # A score of an infinite key is infinite: either no number, or a key that nobody sees.
        assert not np.isnan(np.delete(got[1], place, 0)[:place]).any()
    else:
        dims = slice(None) if what == "k" or kind == "int8" else 5
        assert not np.isfinite(got[1][place:, :2, dims]).any()


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(
    "kinds",
    [(F32, F32), (BF16, BF16), (BF16, INT8), (INT8, BF16), (INT8, INT8), (INT4, BF16)],
    ids=["float32", "bfloat16", "bfloat16-kv8", "int8", "int8-kv8", "int4"],
)
def test_sequence_that_is_not_finite_has_no_finite_logits_and_no_neighbour_changes(
    runner, rng, kinds, wrong
):
    decoder = Decoder(runner, rng, *kinds)
    ids = [rng.integers(1, decoder.sizes.vocab, length) for length in (40, 12, 1)]
    bad = [ids[0], np.array([*ids[1][:5], 0, *ids[1][5:]]), ids[2]]
    decoder.embedding[0, 3] = wrong
    decoder.replace_head(decoder.head)

    def compute(rows):
        texts = [decoder.add(np.append(row, 7)) for row in rows]
        decoder.run(*((text, len(text.ids) - 1) for text in texts))
        decoder.run(*((text, 1) for text in texts))
        return texts

    clean, got = compute(ids), compute(bad)

    for number in (0, 2):
        last = len(ids[number])
        assert np.array_equal(got[number].logits[last], clean[number].logits[last])
        assert np.isfinite(clean[number].logits[last]).all()
    assert not np.isfinite(got[1].logits[len(bad[1]) - 1]).any()
    assert not np.isfinite(got[1].logits[len(bad[1])]).any()
