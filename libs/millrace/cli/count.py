"""A whole number of at least 1, as a flag's value."""

from __future__ import annotations

import argparse


def positive_count(text: str) -> int:
    """The number. Raises argparse's error, which names the flag, for anything else."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)
