"""Facts about a process by its pid: alive, the same one as before, resident memory."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_STATE = 0
_START_TICKS = 19
_RESIDENT_PAGES = 1


def start_mark(pid: int) -> str:
    """A text that differs between two processes that had the same pid; empty where it is gone.

    On Linux the start time in clock ticks since boot, elsewhere what `ps` prints.
    """
    if Path("/proc/self/stat").exists():
        fields = _stat_fields(pid)
        return fields[_START_TICKS] if fields and fields[_STATE] != "Z" else ""
    return _ps("lstart", pid)


def is_alive(pid: int, mark: str) -> bool:
    """True where the process that had this start mark still runs."""
    return bool(mark) and start_mark(pid) == mark


def resident_bytes(pid: int) -> int:
    """Resident memory; 0 where the process is gone."""
    statm = Path(f"/proc/{pid}/statm")
    if Path("/proc/self/statm").exists():
        try:
            pages = int(statm.read_text(encoding="utf-8").split()[_RESIDENT_PAGES])
        except OSError:
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")
    shown = _ps("rss", pid)
    return int(shown) * 1024 if shown.isdigit() else 0


def _stat_fields(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat after the name, which may itself hold blanks."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return []
    return text.rsplit(")", 1)[1].split()


def _ps(column: str, pid: int) -> str:
    command = ["ps", "-o", f"{column}=", "-p", str(pid)]
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=False
    ).stdout.strip()
