"""Our attention beside the model's own, layer by layer and on the same q, k and v.

Before any rounding can spread, so that the two agree closely whatever the weights' kind, and
whichever experts a rounding would exchange. The model's own is computed in float32, and once more
in the model's dtype: so much as rounding costs it may cost us.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from millrace.core.errors import UnsupportedModel
from millrace.engine.attention.base import AttentionStep

from .generic import paged_attention
from .watch import STEP_ARGUMENT

# No part of the name may be one that transformers treats specially (flash, sdpa, flex, paged).
COMPARE_NAME = "millrace-compare"
# Ours rounds elsewhere, and sums in another order.
ROUNDINGS = 3.0
# What models of transformers call their plainest attention; the one that says what they compute.
_OWN_ATTENTION = "eager_attention_forward"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Stands in for a step of one whole text, and compares what each layer makes of it.

    `tolerance` is of a layer's output, beside a few times the rounding of the model's dtype.
    """

    step: AttentionStep
    tolerance: float

    def check(
        self, layer: str, ours: torch.Tensor, own: torch.Tensor, rounded: torch.Tensor
    ) -> None:
        """Raises `UnsupportedModel` unless outputs [1, T, H, D] are the same."""
        if ours.shape != own.shape:
            raise UnsupportedModel(
                f"{layer}: its own attention gives {tuple(own.shape)}, not {tuple(ours.shape)}"
            )
        off = _deviation(ours, own)
        if not off <= self.tolerance + ROUNDINGS * _deviation(rounded, own):
            raise UnsupportedModel(
                f"{layer}: its own attention differs by {off:.1%} from that of the generic route"
            )


def _deviation(one: torch.Tensor, other: torch.Tensor) -> float:
    """Root mean square of the difference, of that of `other`."""
    size = other.square().mean().sqrt().clamp(min=1e-12)
    return float((one.float() - other).square().mean().sqrt() / size)


def _compare_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    comparison: Comparison = kwargs.pop(STEP_ARGUMENT)
    narrow = (query, key, value, attention_mask)
    wide = tuple(None if tensor is None else tensor.float() for tensor in narrow)
    own, *_ = _own_attention(module)(module, *wide, **kwargs)
    rounded, *_ = _own_attention(module)(module, *narrow, **kwargs)
    step: dict[str, Any] = {STEP_ARGUMENT: comparison.step}
    ours, _ = paged_attention(module, query, key, value, None, **kwargs, **step)
    comparison.check(f"{type(module).__name__} {module.layer_idx}", ours, own, rounded)
    return ours, None


def _own_attention(module: Any) -> Any:
    """The function that the layer's code would call: the one its globals know by that name."""
    forward: Any = inspect.unwrap(type(module).forward)
    try:
        return forward.__globals__[_OWN_ATTENTION]
    except KeyError:
        raise UnsupportedModel(f"{type(module).__name__} has no attention of its own") from None


ALL_ATTENTION_FUNCTIONS.register(COMPARE_NAME, _compare_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(COMPARE_NAME, eager_mask)
