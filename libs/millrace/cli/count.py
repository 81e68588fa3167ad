"""Numbers greater than 0, as a flag's value."""

from __future__ import annotations

import argparse


def positive_count(text: str) -> int:
    """A whole number. Raises argparse's error, which names the flag, for anything else."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def positive_number(text: str) -> float:
    """A number, infinity too. Raises argparse's error, which names the flag, for anything else."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number greater than 0")
    return number
