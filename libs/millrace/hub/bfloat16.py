"""float32 to bfloat16 without torch; numpy has no such type, so the bits travel as uint16."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_QUIET_NAN = 0x7FC0


def to_bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Upper half of each float32, rounded to nearest, ties to even; NaN stays NaN.

    values: any shape, float32. Returns the same shape, uint16.
    """
    import numpy as np

    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    # Adding 0x7FFF plus the last kept bit carries into the kept half exactly when rounding up.
    last_kept = (bits >> np.uint32(16)) & np.uint32(1)
    with np.errstate(over="ignore"):
        rounded = ((bits + last_kept + np.uint32(0x7FFF)) >> np.uint32(16)).astype(np.uint16)
    nans = np.isnan(values)
    if nans.any():
        rounded[nans] = _QUIET_NAN
    return rounded.reshape(np.shape(values))
