"""What lies in the caches and belongs to no model that is served from here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from millrace.config.home import Home
from millrace.core.errors import Conflict

from .catalog import DEFAULT_MODEL, folder_of, manifests
from .default_model import downloads_of_default_model
from .disk_use import bytes_under, delete
from .manifest import Manifest
from .model_cache import (
    all_packed,
    all_tokenizer_builds,
    is_being_written,
    stems_of,
    tokenizer_builds_of,
)
from .staging import all_staged, pull_lock

# How the weights of a registered model are stored for whoever serves it: "bfloat16", "int8" …
KindsOf = Callable[[Manifest, Path], Collection[str]]


@dataclass(frozen=True, slots=True)
class Leftover:
    """One file or folder that may go, and why. `lock`: of the pull that it may belong to, or ""."""

    path: Path
    num_bytes: int
    reason: str
    lock: str = ""


def find_leftovers(home: Home, kinds_of: KindsOf) -> list[Leftover]:
    """Packed weights of no registered model or of a kind not in use, tokenizers, downloads."""
    found = [*_packed(home, kinds_of), *_tokenizers(home), *_downloads(home)]
    return sorted(found, key=lambda each: str(each.path))


def delete_leftovers(home: Home, leftovers: Collection[Leftover]) -> int:
    """Deletes them, but what a pull has taken up meanwhile. Returns the bytes freed."""
    freed = 0
    for each in leftovers:
        if not each.lock:
            freed += delete(each.path)
            continue
        try:
            with pull_lock(home, each.lock, wait_s=0.0):
                freed += delete(each.path)
        except Conflict:
            continue
    return freed


def _packed(home: Home, kinds_of: KindsOf) -> Iterator[Leftover]:
    owners: dict[str, tuple[Manifest, Path]] = {}
    for manifest, entry_folder in manifests(home):
        folder = folder_of(manifest, entry_folder)
        owners.update(dict.fromkeys(stems_of(folder), (manifest, folder)))
    for packed in all_packed(home):
        owner = owners.get(packed.stem)
        if owner is None:
            reason = f"packed weights of {packed.folder_name}, which is no model here as it was"
        elif packed.kind in kinds_of(*owner):
            continue
        else:
            reason = f"{packed.kind} weights of {owner[0].name}, which the settings do not ask for"
        for path in packed.paths:
            if not is_being_written(path):
                yield Leftover(path, bytes_under(path), reason)


def _tokenizers(home: Home) -> Iterator[Leftover]:
    folders = [folder_of(*each) for each in manifests(home)]
    needed = tokenizer_builds_of(folders, home)
    for path in all_tokenizer_builds(home):
        if path not in needed:
            yield Leftover(path, bytes_under(path), "tokenizer of no model here")


def _downloads(home: Home) -> Iterator[Leftover]:
    wheel = "download of a model that is imported"
    found = [(path, DEFAULT_MODEL, wheel) for path in downloads_of_default_model(home)]
    staged = "model that was not fetched to its end"
    found += [(path, entry_name, staged) for entry_name, path in all_staged(home)]
    for path, lock, reason in found:
        if path.exists() and _is_free(home, lock):
            yield Leftover(path, bytes_under(path), reason, lock)


def _is_free(home: Home, lock: str) -> bool:
    try:
        with pull_lock(home, lock, wait_s=0.0):
            return True
    except Conflict:
        return False
