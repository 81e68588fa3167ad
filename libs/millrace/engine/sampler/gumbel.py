"""Random draws by the Gumbel-max rule: the token with the highest logit / T + noise is drawn.

The noise of a token depends on (seed, position, choice, token id) alone, so a draw is the same in
any batch, on any worker, and whether or not tokens that cannot win were looked at. Scores are
(logit - peak) / T + noise in float64; where they tie, the lowest token id is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from .philox import CHUNK_TOKENS, Words, philox4x32, token_words
from .truncation import Ids, Logits, lowered

# A uniform number is at most 1 - 2^-53, so no noise is above 53 ln 2 = 36.74; the rest is room for
# rounding.
MAX_NOISE = 36.75

# Rows with at most this many tokens share one Philox pass; a longer one is faster alone.
MAX_SHARED_TOKENS = 2048

# Leaving tokens out costs a gather, which pays below this share of the vocabulary.
_MAX_GATHERED_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Draw:
    """One token to draw from `token_ids` [N], ascending, with `logits` [N].

    `peak` is the row's highest logit, which keeps the scaled logits at or below 0.
    """

    seed: int
    position: int
    choice: int
    temperature: float
    peak: float
    token_ids: Ids
    logits: Logits

    def over(self, logits: Logits, token_ids: Ids) -> Draw:
        """The same draw from `token_ids` of a row's `logits` [V]."""
        return replace(self, token_ids=token_ids, logits=logits[token_ids])


def noise_of(words: Words) -> npt.NDArray[np.float64]:
    """Gumbel noise [N] in float64 from packed Philox words [N], which are overwritten.

    The upper 52 bits k make the uniform number (k + 1/2) / 2^52, which float64 holds exactly: never
    0, never 1, symmetric about 1/2.
    """
    np.right_shift(words, np.uint64(12), out=words)
    noise = words.view(np.int64).astype(np.float64)
    noise += 0.5
    noise *= 2.0**-52
    for _ in range(2):
        np.log(noise, out=noise)
        np.negative(noise, out=noise)
    return noise


def draw_tokens(draws: Sequence[Draw]) -> list[int]:
    """The drawn token id of each of `draws`, by one Philox pass over all their tokens."""
    if not draws:
        return []
    counts = [len(draw.token_ids) for draw in draws]
    words, _ = philox4x32(
        np.repeat(np.array([draw.position for draw in draws], dtype=np.uint64), counts),
        np.repeat(np.array([draw.choice for draw in draws], dtype=np.uint64), counts),
        np.concatenate([draw.token_ids for draw in draws]).view(np.uint64),
        np.zeros(1, dtype=np.uint64),
        np.repeat(np.array([draw.seed & 0xFFFFFFFF for draw in draws], dtype=np.uint64), counts),
        np.repeat(np.array([draw.seed >> 32 for draw in draws], dtype=np.uint64), counts),
    )
    scores = np.concatenate([draw.logits for draw in draws]).astype(np.float64)
    scores -= np.repeat([draw.peak for draw in draws], counts)
    scores /= np.repeat([draw.temperature for draw in draws], counts)
    scores += noise_of(words)
    drawn = []
    end = 0
    for draw, count in zip(draws, counts, strict=True):
        start, end = end, end + count
        drawn.append(int(draw.token_ids[scores[start:end].argmax()]))
    return drawn


def draw_token(draw: Draw) -> int:
    """The drawn token id; for many tokens, in chunks that stay in the processor's cache."""
    best_id, best_score = int(draw.token_ids[0]), -np.inf
    for start in range(0, len(draw.token_ids), CHUNK_TOKENS):
        token_ids = draw.token_ids[start : start + CHUNK_TOKENS]
        words = token_words(draw.seed, draw.position, draw.choice, token_ids.view(np.uint64))
        scores = draw.logits[start : start + CHUNK_TOKENS].astype(np.float64)
        scores -= draw.peak
        scores /= draw.temperature
        scores += noise_of(words)
        index = int(scores.argmax())
        if scores[index] > best_score:
            best_id, best_score = int(token_ids[index]), float(scores[index])
    return best_id


def possible_winners(draw: Draw, logits: Logits, all_ids: Ids) -> Draw:
    """A draw from the whole vocabulary, less the tokens that cannot win whatever their noise.

    `logits` and `all_ids` are [V]; `draw` holds the likeliest token, whose score is computed first.
    A token whose scaled logit lies more than `MAX_NOISE` below that score is left out.
    """
    words = token_words(draw.seed, draw.position, draw.choice, draw.token_ids.view(np.uint64))
    floor = lowered(draw.peak + draw.temperature * (float(noise_of(words)[0]) - MAX_NOISE))
    can_win = logits >= floor
    if np.count_nonzero(can_win) < _MAX_GATHERED_SHARE * len(logits):
        return draw.over(logits, np.flatnonzero(can_win))
    return replace(draw, token_ids=all_ids, logits=logits)
