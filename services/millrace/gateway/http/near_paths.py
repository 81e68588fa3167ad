"""Which route a request for another path may have meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

VERSION = "/v1"
_LIKENESS = 0.85


def near_path(path: str, known: Sequence[str]) -> str | None:
    """A known path that `path` ends with (under a wrong base URL, or with a slash too many), or
    that it resembles; None if there is none.
    """
    path = re.sub("/{2,}", "/", path).rstrip("/").lower()
    for each in sorted(known, key=len, reverse=True):
        if path.endswith(each.removeprefix(VERSION)):
            return each
    for candidate in (path[:200], VERSION + path[:200]):
        if near := difflib.get_close_matches(candidate, known, n=1, cutoff=_LIKENESS):
            return near[0]
    return None
