"""The one place that reads the process environment."""

from __future__ import annotations

import os


def current_environment() -> dict[str, str]:
    """A copy of the process environment."""
    return dict(os.environ)
