"""Files that are replaced in one step, so that a reader sees the old text or the new one."""

from __future__ import annotations

import os
from pathlib import Path

# Passwords may stand in them, or what somebody asked.
OWNER_ONLY = 0o600
# For programs that run as somebody else, such as Prometheus.
EVERYBODY_READS = 0o644


def replace_file(path: Path, text: str, mode: int = OWNER_ONLY) -> None:
    """Writes `text` as UTF-8 under another name, then puts it in the place of `path`.

    Raises:
        OSError: it cannot be written; the old file stands as it was.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    fresh.replace(path)
