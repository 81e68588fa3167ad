"""Which name may have been meant by one that nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MAX_NEAREST = 3
_CUTOFF = 0.6


def nearest_names(asked: str, names: Iterable[str]) -> list[str]:
    """Those that may have been meant, the nearest first; case, and who made it, may be left out."""
    names = sorted(names)
    name_of = {name.lower().rpartition("/")[2]: name for name in names}
    name_of |= {name.lower(): name for name in names}
    near = difflib.get_close_matches(asked.lower(), name_of, 2 * _MAX_NEAREST, _CUTOFF)
    return list(dict.fromkeys(name_of[each] for each in near))[:_MAX_NEAREST]
