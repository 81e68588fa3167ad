"""Which rows of a step are computed in finite numbers.

Whatever is not finite in a layer stays so in the residual stream of its token, and reaches other
tokens of the same row by attention alone: also those before it, which a mask hides from it by a
weight of 0, for 0 times infinity is no number. So all tokens of a row are looked at.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from millrace.engine.batch import Batch


def sound_rows(hidden: torch.Tensor, batch: Batch) -> npt.NDArray[np.bool_]:
    """For each row of the batch whether `hidden` [T, H], of the last layer, is finite."""
    is_finite = hidden.sum(-1, dtype=torch.float32).isfinite().cpu().numpy()
    rows: npt.NDArray[np.bool_] = np.logical_and.reduceat(is_finite, batch.cu_seqlens_q[:-1])
    return rows
