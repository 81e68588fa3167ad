"""Arrays of a step on the device where torch computes."""

from __future__ import annotations

import numpy as np
import torch

from .batch import IntArray


def to_device(array: IntArray, device: torch.device) -> torch.Tensor:
    """The same numbers; shares memory with `array` where the device is the host."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
