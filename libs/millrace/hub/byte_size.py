"""Sizes in bytes, as people write and read them: decimal units, as disks and downloads are sold."""

from __future__ import annotations

import re

from millrace.core.errors import ConfigError

MIN_MEMORY_BYTES = 10**6

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def format_bytes(count: float) -> str:
    """Such as 92.9 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def parse_memory(text: str) -> int:
    """Bytes of "24GB", "24GiB", "512M" or a plain number of bytes.

    Raises ConfigError for anything else, and below 1 MB: such a number has lost its unit.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if match is None or (match[3] and not match[2]):
        raise ConfigError(f"memory {text!r}: write it as 24GB, 24GiB or in bytes", field="memory")
    unit = match[2].upper()
    factor = 1024 ** ("KMGT".index(unit) + 1) if match[3] else _UNITS[unit]
    count = int(float(match[1]) * factor)
    if count < MIN_MEMORY_BYTES:
        raise ConfigError(
            f"memory {text!r} is {count} bytes, under 1 MB: write it as 24GB, 24GiB or in bytes",
            field="memory",
        )
    return count
