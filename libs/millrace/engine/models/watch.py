"""One pass of a model of transformers in which every token attends to nothing but itself.

With attention out of the way, nothing of one token reaches another unless the model's own code
carries it there; and what each layer hands to its attention, mask included, can be looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from millrace.core.errors import UnsupportedModel
from millrace.engine.kv_cache import LayerShape

# No part of the name may be one that transformers treats specially (flash, sdpa, flex, paged).
WATCH_NAME = "millrace-watch"
STEP_ARGUMENT = "millrace_step"


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What a layer gave its attention: q [T, H, D], k [T, Hkv, D]; `mask` as the model built it."""

    q: torch.Tensor
    k: torch.Tensor
    shape: LayerShape
    window: int | None
    mask: torch.Tensor | None
    is_causal: bool


@dataclass(slots=True)
class Watch:
    """The calls of one pass, by layer, and its logits [T, vocab_size]."""

    name: str
    calls: dict[int, AttentionCall] = field(default_factory=dict)
    logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def take(self, layer: int, call: AttentionCall) -> None:
        """Keeps a call; raises `UnsupportedModel` for a layer's second one."""
        if layer in self.calls:
            raise UnsupportedModel(f"{self.name}: layer {layer} attends twice")
        self.calls[layer] = call

    def shapes(self) -> tuple[LayerShape, ...]:
        """Of every layer; raises `UnsupportedModel` if the layers cannot have a K/V cache."""
        if not self.calls or sorted(self.calls) != list(range(len(self.calls))):
            raise UnsupportedModel(f"{self.name}: its attention layers are {sorted(self.calls)}")
        if not all(call.is_causal for call in self.calls.values()):
            raise UnsupportedModel(f"{self.name}: its attention is not causal")
        return tuple(self.calls[layer].shape for layer in range(len(self.calls)))


class Watchable(Protocol):
    """A model whose attention can be exchanged for one pass."""

    name: str
    vocab_size: int

    def run(
        self, attention: str, token_ids: Sequence[int], positions: Sequence[int], step: Any
    ) -> torch.Tensor:
        """All logits [T, vocab_size] of one pass with the attention registered by that name."""
        ...


def watch(model: Watchable, token_ids: Sequence[int], positions: Sequence[int]) -> Watch:
    """Passes the tokens through `model`, each for itself."""
    seen = Watch(model.name)
    seen.logits = model.run(WATCH_NAME, token_ids, positions, seen)
    return seen


def _watch_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer: query [1, H, T, D], key and value [1, Hkv, T, D]."""
    seen = kwargs.get(STEP_ARGUMENT)
    if seen is None:
        raise UnsupportedModel(f"{type(module).__name__} does not pass on keyword arguments")
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    call = AttentionCall(
        q=q,
        k=k,
        shape=LayerShape(k.shape[1], k.shape[2], v.shape[2]),
        window=sliding_window,
        mask=attention_mask,
        is_causal=getattr(module, "is_causal", True) is not False,
    )
    seen.take(module.layer_idx, call)
    return v.repeat_interleave(q.shape[1] // k.shape[1], 1)[None], None


@contextmanager
def masks_at(queries: Sequence[int], num_keys: int) -> Iterator[None]:
    """Has watched models build their masks, for these query positions and the first `num_keys`.

    Whatever the length of the pass: a mask of transformers is a function of two positions. The
    masks are bool [1, 1, len(queries), num_keys], True if a query sees a key.
    """

    def build(mask_function: Any, device: Any = "cpu", **_: object) -> torch.Tensor:
        zero = torch.zeros((1, 1, 1, 1), dtype=torch.int64, device=device)
        rows = torch.tensor(queries, device=device)[None, None, :, None]
        columns = torch.arange(num_keys, device=device)[None, None, None, :]
        shown: torch.Tensor = mask_function(zero, zero, rows, columns)
        return shown.expand(1, 1, len(queries), num_keys)

    # For as long only: models build masks for names that are registered here, and for no others.
    ALL_MASK_ATTENTION_FUNCTIONS.register(WATCH_NAME, build)
    try:
        yield
    finally:
        del ALL_MASK_ATTENTION_FUNCTIONS._global_mapping[WATCH_NAME]


ALL_ATTENTION_FUNCTIONS.register(WATCH_NAME, _watch_attention)
