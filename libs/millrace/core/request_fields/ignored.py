"""What of a request is not taken into account, and how its client is told."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

IGNORED_HEADER = "millrace-ignored-fields"
MAX_NAMES = 32
MAX_NAME_CHARS = 64
_UNSAFE = re.compile(r"[^A-Za-z0-9_.\-\[\]]")


@dataclass(slots=True)
class IgnoredFields:
    """Collects names as they come, the first `MAX_NAMES` of them, and counts all."""

    num_harmless: int = 0
    num_unknown: int = 0
    _names: dict[str, None] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.num_harmless or self.num_unknown)

    def add(self, path: str, *, is_harmless: bool) -> None:
        """A field of another server that matters to nobody here, or one that nobody knows."""
        if is_harmless:
            self.num_harmless += 1
        else:
            self.num_unknown += 1
        if len(self._names) < MAX_NAMES:
            self._names[_safe(path)] = None

    def header_text(self) -> str:
        """The names as the value of a header: printable ASCII, and bounded."""
        is_cut = self.num_harmless + self.num_unknown > MAX_NAMES
        return ", ".join((*self._names, "...") if is_cut else self._names)


def _safe(path: str) -> str:
    shown = path if len(path) <= MAX_NAME_CHARS else path[: MAX_NAME_CHARS - 3] + "..."
    return _UNSAFE.sub("?", shown)
