"""Which processes serve a model folder, told by locks that end with their processes.

An engine holds a shared lock on the folder's config.json, which it may do in a folder that it can
only read, and whoever started it.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path

_LOCKS = Path("/proc/locks")
_CONFIG = "config.json"


class ServedMark:
    """Says, for as long as it lives, that this process serves a folder.

    Without effect on a file system without locks.
    """

    def __init__(self, folder: Path) -> None:
        try:
            descriptor = os.open(folder / _CONFIG, os.O_RDONLY)
        except OSError:
            return
        weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return


def who_serves(folder: Path) -> str:
    """Such as "process 123" or "another process", if one serves `folder`; else ""."""
    try:
        descriptor = os.open(folder / _CONFIG, os.O_RDONLY)
    except OSError:
        return ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pids = _pids_that_lock(os.fstat(descriptor))
        return f"process {', '.join(map(str, pids))}" if pids else "another process"
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    return ""


def _pids_that_lock(status: os.stat_result) -> list[int]:
    """From lines such as `1: FLOCK  ADVISORY  READ 1234 08:01:131415 0 EOF`."""
    try:
        lines = _LOCKS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    found = set()
    for line in lines:
        parts = line.split()
        if len(parts) > 5 and parts[1] == "FLOCK" and parts[5] == wanted and parts[4].isdigit():
            found.add(int(parts[4]))
    return sorted(found - {0})
