"""One pull at a time for each name, and models that appear whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from millrace.config.home import Home
from millrace.core.errors import ConfigError, Conflict

from .byte_size import format_bytes

_STAGING = ".staging"
_LOCKS = ".locks"
# No name of a model has it.
_TRASH_MARK = "~"
_POLL_S = 0.1
# Room that a full disk should keep for everybody else.
_SPARE_BYTES = 64 << 20


@contextlib.contextmanager
def pull_lock(
    home: Home,
    entry_folder: str,
    *,
    wait_s: float | None = None,
    on_wait: Callable[[str], None] | None = None,
) -> Iterator[None]:
    """Hold the lock of one catalogue entry; the system frees it when its process dies.

    wait_s: how long to wait for another holder, None for as long as it takes. Raises Conflict
    naming the other process once that is over.
    """
    folder = home.models / _LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{entry_folder}.lock"
    with path.open("a+") as file:
        _wait_for_lock(file.fileno(), path, wait_s, on_wait)
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            fcntl.flock(file.fileno(), fcntl.LOCK_UN)


def _wait_for_lock(
    descriptor: int, path: Path, wait_s: float | None, on_wait: Callable[[str], None] | None
) -> None:
    started = time.monotonic()
    has_told = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = path.read_text(encoding="utf-8").strip() or "unknown"
        if wait_s is not None and time.monotonic() - started >= wait_s:
            raise Conflict(
                f"{path.stem} is being fetched by another process (pid {holder}); "
                "try again when it has finished"
            )
        if not has_told and on_wait is not None:
            on_wait(f"waiting for process {holder}, which is fetching {path.stem}")
            has_told = True
        time.sleep(_POLL_S)


def staged_path(home: Home, entry_folder: str) -> Path:
    """Where an entry grows, begun or not."""
    return home.models / _STAGING / entry_folder


def staging_folder(home: Home, entry_folder: str) -> Path:
    """The same, made. It is kept after a failure, so that the next pull goes on there."""
    path = staged_path(home, entry_folder)
    path.mkdir(parents=True, exist_ok=True)
    return path


def all_staged(home: Home) -> Iterator[tuple[str, Path]]:
    """Every half-built or half-deleted entry, with the name of the lock under which it is."""
    folder = home.models / _STAGING
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        yield path.name.partition(_TRASH_MARK)[0], path


def trash_path(home: Home, entry_folder: str) -> Path:
    """Where an entry goes whose deletion takes its time."""
    path = staged_path(home, f"{entry_folder}{_TRASH_MARK}{os.getpid()}")
    path.parent.mkdir(exist_ok=True)
    return path


def discard_staging(home: Home, entry_folder: str) -> None:
    """Forget a half-built entry."""
    shutil.rmtree(staged_path(home, entry_folder), ignore_errors=True)


def forget_if_empty(staged: Path) -> None:
    """A folder into which nothing was fetched is no half-built entry."""
    with contextlib.suppress(OSError):
        staged.rmdir()


def publish(home: Home, entry_folder: str) -> Path:
    """Move a finished entry into the catalogue in one rename. Returns its folder."""
    staged = staged_path(home, entry_folder)
    final = home.models / entry_folder
    for path in staged.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    if final.exists():
        raise Conflict(f"{final} exists already; remove that model first")
    os.rename(staged, final)
    return final


def check_disk(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raises ConfigError with needed and free bytes where the disk under `folder` is too full."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed_bytes + _SPARE_BYTES > free:
        raise ConfigError(
            f"disk full: {purpose} needs {format_bytes(needed_bytes + _SPARE_BYTES)}, "
            f"{existing} has {format_bytes(free)} free; free some space or set MILLRACE_HOME "
            "to a larger disk",
            metadata={
                "needed_bytes": str(needed_bytes + _SPARE_BYTES),
                "free_bytes": str(free),
            },
        )
