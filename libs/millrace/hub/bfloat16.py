"""float32 to bfloat16 without torch; numpy has no such type, so the bits travel as uint16."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_QUIET_NAN = 0x7FC0
# The exponent of infinities and NaN, as bits of bfloat16.
NOT_FINITE = 0x7F80


def to_bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Upper half of each float32, rounded to nearest, ties to even; NaN stays NaN.

    values: any shape, float32. Returns the same shape, uint16.
    """
    import numpy as np

    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    # Adding 0x7FFF plus the last kept bit carries into the kept half exactly when rounding up.
    # Arrays wrap around without a word; only NaN do, and they are set below.
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    kept = rounded.astype(np.uint16)
    nans = np.isnan(values)
    if nans.any():
        kept[nans] = _QUIET_NAN
    return kept.reshape(np.shape(values))
