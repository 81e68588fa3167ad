"""Can the built library be loaded, and if not, why: file systems that run nothing are common."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from millrace.engine.mounts import unescaped

MOUNTS = Path("/proc/self/mounts")


def why_not_loadable(library: Path) -> str:
    """Loads it; empty if that works, else the reason, with a mount point that forbids programs."""
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return explain_failure(library, error)
    return ""


def explain_failure(library: Path, error: OSError) -> str:
    """What the loader said of `library`, and the mount option behind it as far as it shows."""
    mount = noexec_mount(library)
    if mount is None:
        return str(error)
    return (
        f"{library} lies on a file system that is mounted noexec ({mount}); "
        "set MILLRACE_HOME to a folder on another one"
    )


def noexec_mount(path: Path, mounts: Path = MOUNTS) -> Path | None:
    """The mount point that `path` lies on if it is mounted noexec, as far as the system tells."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    real, found, options = os.path.realpath(path), Path("/"), ""
    for line in lines:
        fields = line.split(" ")
        place = Path(unescaped(fields[1]))
        # The last one on a place is the one in force.
        if Path(real).is_relative_to(place) and len(place.parts) >= len(found.parts):
            found, options = place, fields[3]
    return found if "noexec" in options.split(",") else None
