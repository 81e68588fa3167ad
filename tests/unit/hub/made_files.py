"""Files as engines leave them in the caches."""

from __future__ import annotations

from pathlib import Path

from millrace.engine.kernels.cpu.packed_place import packed_path


def write_packed(cache: Path, folder: Path, kind: str, num_bytes: int = 1000) -> Path:
    """A packed file of a model folder as it is now, with its lock."""
    path = packed_path(cache, folder, kind, "avx2")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(num_bytes))
    path.with_suffix(".lock").touch()
    return path


def files_under(folder: Path) -> dict[str, int]:
    """Sizes of all files by their paths below a folder, but for locks of pulls."""
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".locks" not in path.parts
    }
