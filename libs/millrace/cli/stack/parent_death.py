"""Children must not outlive a supervisor that was killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def death_with_parent() -> Callable[[], None] | None:
    """What to run in a child before exec so that the kernel kills it when its parent dies.

    Linux only, and only for children started from the main thread. Elsewhere None: there the next
    `millrace up` or `down` ends what was left.
    """
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def ask_kernel() -> None:
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0 or os.getppid() != parent:
            os._exit(1)

    return ask_kernel
