"""Memory that was freed here, given back to the system.

glibc keeps what was freed for the next allocation. Loading a tokenizer and encoding megabytes of
text take several times of what stays in use, and would stay with the process.
"""

from __future__ import annotations

import ctypes


def return_freed_memory() -> None:
    """Does nothing with other C libraries. Releases the GIL meanwhile."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
