"""How long sequences may be for a model of transformers to compute each alike in every step.

A step mixes rows at all positions, and K/V once computed stay. So what becomes of a token must
depend on its own past only and not, as with longrope, on the highest position of the step. Nor may
the model's mask hide what our attention shows, as does a window that stands in the mask alone.
Either often holds up to a length that config.json names, and not beyond.

A few passes of a dozen tokens find out, exactly and whatever length, dtype and weights: with
attention out of the way, one group of tokens must stay what it is when those around it stand at the
highest positions, and when those around it are NaN. Not seen is a model that goes another way by
the number of tokens of a step, once they are more than these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from millrace.core.errors import UnsupportedModel
from millrace.engine.kv_cache import LayerShape
from millrace.engine.tensors import one_thread

from .watch import AttentionCall, Watch, Watchable, masks_at, watch

GROUP_TOKENS = 4
# Of the largest value: the passes have the same shape, so only sums whose order is free may differ.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}
_LENGTH_NAMES = ("position", "window", "chunk", "context", "length", "n_ctx")

_POSITIONS = "what becomes of a token depends on the highest position of a step (as in longrope)"
_MASK = "its own mask hides tokens that the windows of its layers show"


class Taintable(Watchable, Protocol):
    """A model whose embeddings can be spoilt."""

    def tainted(self, tokens: Sequence[int]) -> AbstractContextManager[None]:
        """While it lasts, the embeddings of these tokens of each pass are NaN."""
        ...


@dataclass(frozen=True, slots=True)
class Exactness:
    """The longest exact `length`; why it is not the one asked for, or ""; and the layers."""

    length: int
    reason: str
    layers: tuple[LayerShape, ...]
    windows: frozenset[int]


def find_exactness(model: Taintable, length: int, config: Mapping[str, Any]) -> Exactness:
    """Tries `length`, then the shorter ones that `config` names.

    Raises `UnsupportedModel` if none is exact.
    """
    shorter = {number for number in _lengths_in(config) if 0 < number < length}
    first_reason = ""
    with one_thread():
        for candidate in (length, *sorted(shorter, reverse=True)):
            seen, reason = _look(model, candidate)
            first_reason = first_reason or reason
            if not reason:
                _check_tokens_are_apart(model, candidate)
                windows = frozenset(call.window for call in seen.calls.values() if call.window)
                return Exactness(candidate, first_reason, seen.shapes(), windows)
    raise UnsupportedModel(f"{model.name}: {first_reason}")


def _look(model: Watchable, length: int) -> tuple[Watch, str]:
    """What the layers do at the lowest positions, and why that is not exact, or ""."""
    tokens, low, middle = _three_groups(model, length)
    high = range(length - len(low) // 3, length)
    queries = sorted({0, length // 2, *range(max(0, length - 3), length)})
    with masks_at(queries, length + GROUP_TOKENS):
        seen = watch(model, tokens, low)
    seen.shapes()
    if seen.logits.isnan().any():
        raise UnsupportedModel(f"{model.name}: its logits are not numbers")
    if not all(_masks_as_told(call, queries) for call in seen.calls.values()):
        return seen, _MASK
    among_high = watch(model, tokens, [*high, *low[middle], *high])
    return seen, "" if _are_same(seen, among_high, middle) else _POSITIONS


def _check_tokens_are_apart(model: Taintable, length: int) -> None:
    tokens, low, middle = _three_groups(model, length)
    around = [index for index in range(len(low)) if index not in low[middle]]
    with model.tainted(around):
        seen = watch(model, tokens, low)
    parts = [call.q for call in seen.calls.values()] + [call.k for call in seen.calls.values()]
    if any(part[middle].isnan().any() for part in (*parts, seen.logits)):
        raise UnsupportedModel(
            f"{model.name}: its layers carry something from token to token beside their attention"
        )


def _three_groups(model: Watchable, length: int) -> tuple[list[int], range, slice]:
    """The same few tokens three times, the lowest positions for them, and where the second lie."""
    size = max(1, min(GROUP_TOKENS, length // 3))
    tokens = [(7 * index + 3) % model.vocab_size for index in range(size)]
    return tokens * 3, range(3 * size), slice(size, 2 * size)


def _are_same(one: Watch, other: Watch, tokens: slice) -> bool:
    return (
        one.calls.keys() == other.calls.keys()
        and _is_close(one.logits[tokens], other.logits[tokens])
        and all(
            _is_close(call.q[tokens], other.calls[layer].q[tokens])
            and _is_close(call.k[tokens], other.calls[layer].k[tokens])
            for layer, call in one.calls.items()
        )
    )


def _is_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    largest = float(one.nan_to_num(0.0, 0.0, 0.0).abs().max())
    return torch.allclose(one, other, rtol=0.0, atol=TOLERANCES[one.dtype] * largest)


def _masks_as_told(call: AttentionCall, queries: Sequence[int]) -> bool:
    """True if the model's own mask shows what causal attention in the layer's window does."""
    if call.mask is None:
        return True
    columns = torch.arange(call.mask.shape[-1])
    rows = torch.tensor(queries)[:, None]
    told = columns <= rows
    if call.window:
        told &= columns > rows - call.window
    mask = call.mask.cpu()
    shown = mask if mask.dtype == torch.bool else mask == 0
    return shown.shape == (1, 1, *told.shape) and torch.equal(shown[0, 0], told)


def _lengths_in(config: Mapping[str, Any]) -> Iterator[int]:
    """Values that are lengths by their names, at any depth."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _lengths_in(value)
        elif type(value) is int and any(part in str(name) for part in _LENGTH_NAMES):
            yield value
