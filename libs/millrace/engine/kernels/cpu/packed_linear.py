"""Linear layers of any torch model, computed by the kernels from packed weights."""

from __future__ import annotations

import ctypes
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from millrace.engine.config import head_kind

from .library import KINDS, Kernels, padded_columns
from .packed_weights import pack_matrix


class PackedLinear(nn.Module):
    """`nn.Linear` over packed weights. A row's result does not depend on the rows beside it."""

    def __init__(self, linear: nn.Linear, kernels: Kernels, kind: int) -> None:
        super().__init__()
        self._kernels = kernels
        self._dtype = linear.weight.dtype
        bias = None if linear.bias is None else linear.bias.detach().float().numpy()
        weight = linear.weight.detach().float().numpy()
        self.matrix = pack_matrix(kernels, kind, weight, bias)
        self._struct = self.matrix.struct
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in_features] → [..., out_features]."""
        rows = x.reshape(-1, self.in_features).to(torch.float32).contiguous()
        out = torch.empty((len(rows), padded_columns(self.out_features)), dtype=torch.float32)
        code = self._kernels.c.mr_multiply(
            self._kernels.team,
            ctypes.byref(self._struct),
            rows.data_ptr(),
            rows.numel(),
            len(rows),
            out.data_ptr(),
            out.numel(),
        )
        self._kernels.check(code)
        wanted = out[:, : self.out_features].to(self._dtype)
        return wanted.reshape(*x.shape[:-1], self.out_features)


def pack_linears(
    model: nn.Module,
    kernels: Kernels,
    kind: str,
    head: nn.Module,
    but: Collection[str] = (),
) -> int:
    """Replaces every `nn.Linear` of `model` not called by a name in `but`; returns the bytes saved.

    The small ones too, since a row's result from torch depends on the number of rows. A matrix that
    the model also uses elsewhere (tied embeddings) stays there as it is.
    """
    saved = 0
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and name not in but:
                stored_as = head_kind(kind) if child is head else kind
                packed: Any = PackedLinear(child, kernels, KINDS[stored_as])
                saved += child.weight.nbytes - packed.matrix.num_bytes
                setattr(module, name, packed)
    return saved
