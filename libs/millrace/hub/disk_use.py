"""What files take on the disk, and taking them away."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path


def bytes_under(path: Path) -> int:
    """Bytes that deleting a file or folder frees; links, and files with a second name, free none.

    0 for what is not there.
    """
    return sum(
        status.st_size
        for status in _statuses(path)
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1
    )


def delete(path: Path) -> int:
    """Deletes a file, link or folder, if it is there. Returns the bytes freed."""
    freed = bytes_under(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return freed


def _statuses(path: Path) -> Iterator[os.stat_result]:
    """Of everything under `path`; what vanishes meanwhile is passed over."""
    pending = [path]
    while pending:
        each = pending.pop()
        try:
            status = each.lstat()
            if stat.S_ISDIR(status.st_mode):
                pending.extend(each.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            continue
        yield status
