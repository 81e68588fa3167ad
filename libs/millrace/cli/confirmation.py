"""Asking before something is deleted."""

from __future__ import annotations

import sys

from millrace.core.errors import InvalidRequest


def is_confirmed(question: str) -> bool:
    """The answer of whoever sits at the terminal; raises `InvalidRequest` if nobody does."""
    if not sys.stdin.isatty():
        raise InvalidRequest(f"{question} Nobody to ask here; say --yes")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
