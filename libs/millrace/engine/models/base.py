"""What the engine needs of a model, whichever route it takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from millrace.engine.attention.base import AttentionStep
from millrace.engine.batch import Batch
from millrace.engine.kv_cache import LayerShape

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Logits:
    """What a step says about the next tokens of the rows that sample.

    `values` [rows, vocab_size] is only filled for rows that want logits, where `likeliest` [rows],
    the token with the highest logit, is there; else for all. Of a row whose logits are not finite
    the likeliest is `sampler.NO_TOKEN`.

    `is_sound` [rows of the batch] is False for a row of which something computed in this step, of
    any of its tokens, is not finite.
    """

    values: npt.NDArray[np.float32] | torch.Tensor
    likeliest: npt.NDArray[np.int64] | None = None
    is_sound: npt.NDArray[np.bool_] | None = None


class Model(Protocol):
    """A decoder with its weights on the device."""

    layers: tuple[LayerShape, ...]
    vocab_size: int
    num_parameters: int
    weight_bytes: int

    def forward(self, batch: Batch, step: AttentionStep) -> Logits:
        """One pass over the flattened batch."""
        ...
