"""Where packed weights lie. Apart from what packs them: to look for a file takes no numpy."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .packed_index import VERSION


def packed_path(cache_dir: Path, checkpoint: Path, kind: str, instruction_path: str) -> Path:
    """Where the packed weights of a checkpoint lie, made or not."""
    key = checkpoint_key(checkpoint, kind, instruction_path)
    return cache_dir / "weights" / f"{checkpoint.name}-{kind}-{instruction_path}-{key}.bin"


def checkpoint_key(folder: Path, *parts: str) -> str:
    """A name for what is made of a checkpoint: changes with its files and with `parts`."""
    digest = hashlib.blake2b(digest_size=10)
    for file in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        found = file.stat()
        digest.update(f"{file.name}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    digest.update("\0".join((str(VERSION), str(folder.resolve()), *parts)).encode())
    return digest.hexdigest()
