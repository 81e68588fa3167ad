"""The licence that a model folder declares about itself."""

from __future__ import annotations

import re
from pathlib import Path

_LICENSE_LINE = re.compile(r"^license:\s*[\"']?([A-Za-z0-9][A-Za-z0-9._+-]*)", re.MULTILINE)
UNKNOWN_LICENSE = "unknown"


def license_of_folder(folder: Path) -> str:
    """The `license` of README.md's front matter in lower case, else "unknown"."""
    readme = folder / "README.md"
    if not readme.is_file():
        return UNKNOWN_LICENSE
    text = readme.read_text("utf-8", errors="replace")
    parts = text.split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return UNKNOWN_LICENSE
    match = _LICENSE_LINE.search(parts[1])
    return match[1].lower() if match else UNKNOWN_LICENSE
