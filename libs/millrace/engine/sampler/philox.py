"""Philox4x32-10, a counter-based random number generator: numbers without state.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. The
counter's four 32-bit words are (position, choice, token id, 0), the key is the 64-bit seed with its
low word first. A block's words 0 and 1 are kept here as one 64-bit integer, word 0 in the upper
half; so are words 2 and 3.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

MULTIPLIER_0 = 0xD2511F53
MULTIPLIER_1 = 0xCD9E8D57
WEYL_0 = 0x9E3779B9
WEYL_1 = 0xBB67AE85
NUM_ROUNDS = 10

# As many tokens as are best done in one pass: four buffers of 64-bit words fit into a 1 MiB cache.
CHUNK_TOKENS = 24_576

_MASK = 0xFFFFFFFF
_MASK_64 = 0xFFFFFFFFFFFFFFFF
_U = np.uint64
_HALF = _U(32)
_LOW = _U(_MASK)
_M0 = _U(MULTIPLIER_0)
_M1 = _U(MULTIPLIER_1)


def philox4x32(
    word_0: Words, word_1: Words, word_2: Words, word_3: Words, key_0: Words, key_1: Words
) -> tuple[Words, Words]:
    """The blocks of many counters under many keys, elementwise.

    Every argument holds 32-bit numbers in uint64, all of one shape [N] or broadcastable to it.
    Returns words (0, 1) and words (2, 3) of each block, each pair packed into one uint64.
    """
    left = (word_0 << _HALF) | word_1
    right = (word_2 << _HALF) | word_3
    for _ in range(NUM_ROUNDS):
        left, right = (
            ((right >> _HALF) * _M1) ^ (left << _HALF) ^ (key_0 << _HALF),
            ((left >> _HALF) * _M0) ^ (right << _HALF) ^ (key_1 << _HALF),
        )
        key_0 = (key_0 + _U(WEYL_0)) & _LOW
        key_1 = (key_1 + _U(WEYL_1)) & _LOW
    return left, right


def token_words(seed: int, position: int, choice: int, token_ids: Words) -> Words:
    """Words 0 and 1, packed, of the blocks of one draw's tokens: `token_ids` [N] to [N].

    The same numbers as `philox4x32`, at about two thirds of the time: one key and three scalar
    counter words make most of the first two rounds scalar, and the last two leave out words 2 and
    3.
    """
    words = np.empty_like(token_ids)
    scratch = np.empty((3, len(token_ids)), _U)
    _run_rounds(words, scratch, token_ids, _round_keys(seed), position, choice)
    return words


def _round_keys(seed: int) -> list[tuple[int, int]]:
    """The two key words of each round, in the upper half of 64 bits."""
    low, high = seed & _MASK, (seed >> 32) & _MASK
    return [
        (((low + i * WEYL_0) & _MASK) << 32, ((high + i * WEYL_1) & _MASK) << 32)
        for i in range(NUM_ROUNDS)
    ]


def _run_rounds(
    out: Words,
    scratch: Words,
    token_ids: Words,
    keys: list[tuple[int, int]],
    position: int,
    choice: int,
) -> None:
    """Write words 0 and 1, packed, into `out` [N]; `scratch` is [3, N]."""
    left = out
    right, product_1, product_0 = scratch
    # Round 1: only the token id is a vector.
    np.multiply(token_ids, _M1, out=left)
    np.bitwise_xor(left, _U((choice << 32) ^ keys[0][0]), out=left)
    scalar = (position * MULTIPLIER_0) ^ keys[0][1]
    # Round 2: words 2 and 3 are still the same for all tokens.
    np.right_shift(left, _HALF, out=right)
    np.multiply(right, _M0, out=right)
    np.bitwise_xor(right, _U(((scalar << 32) & _MASK_64) ^ keys[1][1]), out=right)
    np.left_shift(left, _HALF, out=left)
    np.bitwise_xor(left, _U(((scalar >> 32) * MULTIPLIER_1) ^ keys[1][0]), out=left)
    for key_0, key_1 in keys[2:-2]:
        _multiply_high(right, _M1, product_1)
        _multiply_high(left, _M0, product_0)
        _mix(left, product_1, key_0)
        _mix(right, product_0, key_1)
    # Round 9: of words 0 and 1 only word 1 is used again, and that is the product's low half.
    _multiply_high(right, _M1, product_1)
    _multiply_high(left, _M0, product_0)
    _mix(right, product_0, keys[-2][1])
    # Round 10: words 2 and 3 are not wanted.
    np.copyto(left, product_1)
    _multiply_high(right, _M1, product_1)
    _mix(left, product_1, keys[-1][0])


def _multiply_high(words: Words, multiplier: np.uint64, out: Words) -> None:
    np.right_shift(words, _HALF, out=out)
    np.multiply(out, multiplier, out=out)


def _mix(words: Words, product: Words, key: int) -> None:
    np.left_shift(words, _HALF, out=words)
    np.bitwise_xor(words, product, out=words)
    np.bitwise_xor(words, _U(key), out=words)
