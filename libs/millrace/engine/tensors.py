"""Arrays of a step on the device where torch computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from .batch import IntArray


def to_device(array: IntArray, device: torch.device) -> torch.Tensor:
    """The same numbers; shares memory with `array` where the device is the host."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


@contextmanager
def one_thread() -> Iterator[None]:
    """Keeps torch to one thread.

    For a dozen rows, which memory bounds: on a busy machine threads that wait for each other take
    longer than one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
