"""Durations as people read them."""

from __future__ import annotations


def format_s(seconds: float) -> str:
    """As `1.23 s` or `12.3 ms`."""
    if seconds >= 0.9995:
        return f"{seconds:.2f} s"
    return f"{seconds * 1000:.1f} ms"
