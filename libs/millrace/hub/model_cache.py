"""What is kept in caches of models: packed weights and built tokenizers, and whose they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from millrace.config.environment import current_environment
from millrace.config.home import Home
from millrace.core.errors import MillraceError

from .disk_use import bytes_under
from .model_shape import DTYPE_BYTES
from .tokenizer_build import builds_folder
from .tokenizer_files import tokenizer_build_of

# As `packed_path` of the engine names them; a lock or an unfinished file may lie beside.
_PACKED = re.compile(rf"(?P<folder>.+)-(?P<kind>{'|'.join(DTYPE_BYTES)})-[a-z0-9_]+-[0-9a-f]{{20}}")


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """The weights of a folder of this name, packed in one way, with all files of that."""

    stem: str
    folder_name: str
    kind: str
    paths: tuple[Path, ...]

    @property
    def num_bytes(self) -> int:
        """What deleting them frees."""
        return sum(map(bytes_under, self.paths))


def old_cache() -> Path | None:
    """Where engines without a stack kept what they made before they asked for MILLRACE_HOME."""
    environ = current_environment()
    try:
        root = Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        return None
    return root.absolute() / "millrace"


def all_packed(home: Home) -> list[PackedWeights]:
    """Everything that is packed, of registered models or not."""
    caches = [home.cache, old_cache()]
    found: dict[str, tuple[re.Match[str], list[Path]]] = {}
    for folder in (cache / "weights" for cache in caches if cache is not None):
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if match := _PACKED.match(path.name):
                found.setdefault(match[0], (match, []))[1].append(path)
    return [
        PackedWeights(stem, match["folder"], match["kind"], tuple(paths))
        for stem, (match, paths) in found.items()
    ]


def packed_of(folder: Path, others: Iterable[Path], home: Home) -> list[PackedWeights]:
    """What is packed of a model folder as it is, and as it was: that has its name only.

    `others` are the folders of other models, which may have the same name.
    """
    packed = all_packed(home)
    if not packed:
        return []
    own = stems_of(folder)
    foreign = {stem for other in others if other.name == folder.name for stem in stems_of(other)}
    return [
        each
        for each in packed
        if each.stem in own or (each.folder_name == folder.name and each.stem not in foreign)
    ]


def stems_of(folder: Path) -> set[str]:
    """What the packed files of a folder, as it is now, are called in all kinds; none if it is gone.

    Kinds and instruction paths are the engine's.
    """
    # numpy is more than a look at the catalogue should load.
    from millrace.engine.kernels.cpu.instruction_paths import PATHS
    from millrace.engine.kernels.cpu.library import KINDS
    from millrace.engine.kernels.cpu.packed_place import packed_path

    try:
        return {
            packed_path(Path(), folder, kind, path.name).stem for kind in KINDS for path in PATHS
        }
    except OSError:
        return set()


def all_tokenizer_builds(home: Home) -> list[Path]:
    """The folders of all tokenizers that were built."""
    folder = builds_folder(home)
    return sorted(folder.iterdir()) if folder.is_dir() else []


def tokenizer_builds_of(folders: Iterable[Path], home: Home) -> set[Path]:
    """Where those of model folders are kept, built or not; folders that are gone have none."""
    found = set()
    for folder in folders if all_tokenizer_builds(home) else ():
        try:
            found.add(tokenizer_build_of(folder, home))
        except (OSError, MillraceError):
            continue
    return found


def is_being_written(path: Path) -> bool:
    """True for an unfinished file, named after its process, whose process lives."""
    pid = path.stem.rpartition(".")[2]
    if path.suffix != ".part" or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
