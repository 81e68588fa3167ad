"""A whole step of the native route against float64, and bit by bit against itself."""

from __future__ import annotations

import numpy as np
import pytest

from millrace.engine.kernels.cpu.library import BF16, F32, INT4, INT8
from tests.unit.engine.cpu.decoder_calls import Decoder, Sizes

# Weights and K/V, and how far logits (which spread by about 1) may be from float64: what rounding
# the activations costs. A missing bias, norm or rotation costs 0.3 and more.
KINDS = {
    "float32": (F32, F32, 2e-4),
    "bfloat16": (BF16, BF16, 0.08),
    "bfloat16-kv8": (BF16, INT8, 0.08),
    "int8": (INT8, BF16, 0.2),
    "int8-kv8": (INT8, INT8, 0.2),
    "int4": (INT4, BF16, 0.2),
}
SIZES = [
    Sizes(),
    Sizes(hidden=64, intermediate=160, num_heads=4, num_kv_heads=4, head_dim=64, windows=(0,)),
    Sizes(hidden=129, intermediate=33, num_heads=8, num_kv_heads=1, head_dim=80, vocab=33),
]


@pytest.mark.parametrize("kinds", KINDS)
def test_logits_equal_float64(runner, rng, kinds):
    kind, kv_kind, allowed = KINDS[kinds]
    for number, sizes in enumerate(SIZES[:1] if runner.is_slow else SIZES):
        decoder = Decoder(runner, rng, kind, kv_kind, sizes, has_biases=number != 1)
        lengths = [1, 35, 90] if runner.is_slow else [1, 2, 35, 64, 300]
        texts = [decoder.add(rng.integers(0, sizes.vocab, length)) for length in lengths]
        expected = [decoder.expected(text.ids) for text in texts]
        while left := [text for text in texts if text.done < len(text.ids)]:
            counts = [int(rng.integers(1, len(t.ids) - t.done + 1)) for t in left]
            likeliest = decoder.run(*zip(left, counts, strict=True))
            for text, token in zip(left, likeliest, strict=True):
                assert token == text.logits[text.done - 1].argmax()

        for text, logits in zip(texts, expected, strict=True):
            for position, got in text.logits.items():
                error = np.abs(got - logits[position]).max()
                assert error <= allowed, f"{sizes}, token {position} of {len(text.ids)}: {error}"


@pytest.mark.parametrize("kinds", KINDS)
def test_logits_are_the_same_in_any_cut_batch_and_team(runner, rng, kinds):
    kind, kv_kind, _ = KINDS[kinds]
    length = 60 if runner.is_slow else 330
    decoder = Decoder(runner, rng, kind, kv_kind, num_blocks=80)
    ids = rng.integers(0, decoder.sizes.vocab, length)

    def compute(cuts, team_size, others=()):
        text = decoder.add(ids)
        beside = [decoder.add(rng.integers(0, decoder.sizes.vocab, 40)) for _ in others]
        for cut in cuts:
            work = [(other, 1 + other.done % 3) for other in beside if other.done < 30]
            at = int(rng.integers(len(work) + 1))
            decoder.run(*work[:at], (text, cut), *work[at:], team_size=team_size)
        return text.logits

    last = length - 5
    alone = compute([last, *[1] * 5], 1)
    whole = compute([length], 2)
    cut = int(rng.integers(1, last))
    together = compute([cut, last - cut, *[1] * 5], 3, range(6))
    assert np.array_equal(alone[length - 1], whole[length - 1])
    for position in range(last, length):
        assert np.array_equal(alone[position], together[position])


def test_greedy_row_gets_its_token_and_no_logits(runner, rng):
    decoder = Decoder(runner, rng, F32, F32)
    texts = [decoder.add(rng.integers(0, decoder.sizes.vocab, 9)) for _ in range(5)]

    likeliest = decoder.run(*((text, 9) for text in texts), wants=lambda row: row == 2)

    expected = [decoder.expected(text.ids)[-1].argmax() for text in texts]
    assert likeliest.tolist() == expected
    assert [len(text.logits) for text in texts] == [0, 0, 1, 0, 0]


def test_padding_of_the_vocabulary_is_never_the_likeliest(runner, rng):
    decoder = Decoder(runner, rng, F32, F32)
    text = decoder.add(rng.integers(0, decoder.sizes.vocab, 5))
    likes = rng.uniform(0.1, 1.0, decoder.sizes.vocab)
    # All logits are below the zeros of the padding.
    decoder.replace_head(-likes[:, None] * decoder.hidden(text.ids)[-1])

    assert decoder.run((text, 5)).tolist() == [likes.argmin()]
    assert text.logits[4].max() < 0
