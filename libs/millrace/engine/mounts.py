"""Paths in the mount tables of Linux (/proc/self/mounts and /proc/self/mountinfo)."""

from __future__ import annotations

import re

_OCTAL = re.compile(r"\\([0-7]{3})")


def unescaped(text: str) -> str:
    """The kernel writes blanks, tabs, newlines and backslashes of a path in octal."""
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)
