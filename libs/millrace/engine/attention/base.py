"""What an attention backend is, and how a model reaches it during a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from millrace.engine.batch import Batch

if TYPE_CHECKING:
    import torch


class AttentionBackend(Protocol):
    """Paged attention over one KV cache. All implementations equal `torch_attention` in results."""

    def prepare(self, batch: Batch) -> Any:
        """What `forward` needs to know of the step, made once before the first layer."""
        ...

    def forward(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        metadata: Any,
        scale: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Writes the new K/V of a layer into the cache, then attends causally; returns [T, H, Dv].

        q [T, H, D], k [T, Hkv, D], v [T, Hkv, Dv] belong to the flattened batch, after RoPE. With
        `sliding_window` w a token sees the last w tokens, itself included. `softcap` c bends the
        scaled scores to c * tanh(score / c). `sinks` [H] join each head's softmax as one more logit
        that carries no value. Touches only blocks of the rows in the batch.
        """
        ...


class Progress:
    """How far the engine has come; rises twice with every layer, read from other threads."""

    def __init__(self) -> None:
        # An array, so that kernels can count while they run.
        self._count: npt.NDArray[np.int64] = np.zeros(1, dtype=np.int64)
        self.address = int(self._count.ctypes.data)

    @property
    def count(self) -> int:
        """Half layers computed since the engine was made."""
        return int(self._count[0])

    def advance(self) -> None:
        """Counts one more half of a layer."""
        self._count[0] += 1


@dataclass(frozen=True, slots=True)
class AttentionStep:
    """The backend in one step: what a model's layers call."""

    backend: AttentionBackend
    metadata: Any
    progress: Progress

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        scale: float,
        sliding_window: int | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`AttentionBackend.forward` with this step's metadata."""
        # Before and after: on a slow machine each half of a layer of a long prompt takes seconds.
        self.progress.advance()
        output = self.backend.forward(
            layer, q, k, v, self.metadata, scale, sliding_window, softcap, sinks
        )
        self.progress.advance()
        return output
