"""What the engine needs of a model, whichever route it takes."""

from __future__ import annotations

from typing import Protocol

import torch

from millrace.engine.attention.base import AttentionStep
from millrace.engine.batch import Batch
from millrace.engine.kv_cache import LayerShape


class Model(Protocol):
    """A decoder with its weights on the device."""

    layers: tuple[LayerShape, ...]
    vocab_size: int
    num_parameters: int
    weight_bytes: int

    def forward(self, batch: Batch, step: AttentionStep) -> torch.Tensor:
        """One pass over the flattened batch; logits [rows that sample, vocab_size]."""
        ...
