"""Lines on stderr while long parts run."""

from __future__ import annotations

import sys
import time

_STARTED_S = time.monotonic()


def show_progress(text: str) -> None:
    """One line, with the time since the start."""
    print(f"[{time.monotonic() - _STARTED_S:6.1f} s] {text}", file=sys.stderr, flush=True)
