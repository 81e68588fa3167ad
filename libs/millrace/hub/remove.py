"""Taking a model out of the catalogue, with all that was made of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from millrace.config.home import Home
from millrace.core.errors import Conflict, UnknownModel
from millrace.engine.served import who_serves

from .catalog import DEFAULT_MODEL, find_manifest, folder_of, manifests, names_here
from .default_model import downloads_of_default_model
from .disk_use import bytes_under, delete
from .manifest import Manifest, folder_name
from .model_cache import packed_of, tokenizer_builds_of
from .near_names import nearest_names
from .staging import pull_lock, staged_path, trash_path


@dataclass(frozen=True, slots=True)
class Removal:
    """What removing a model means. manifest: None for a pull that was never finished.

    folder: the model's own, with config.json. paths: all that is deleted.
    """

    manifest: Manifest | None
    folder: Path | None
    paths: tuple[Path, ...]

    @property
    def num_bytes(self) -> int:
        """What it frees."""
        return sum(map(bytes_under, self.paths))


def plan_removal(model: str, home: Home) -> Removal:
    """What removing `model` (name or alias) takes away; a folder that was only registered stays.

    Raises UnknownModel if there is neither an entry nor a half-finished pull.
    """
    found = find_manifest(model, home)
    staged = staged_path(home, folder_name(found[0].name if found else model))
    half_pulled = [staged] if staged.is_dir() else []
    if found is None:
        if not half_pulled:
            raise UnknownModel(_unknown_message(model, names_here(home)), field="model")
        return Removal(None, None, tuple(half_pulled))
    manifest, entry_folder = found
    folder = folder_of(manifest, entry_folder)
    others = [folder_of(*each) for each in manifests(home) if each[0].name != manifest.name]
    # Another name for the same folder needs what was made of it.
    is_shared = folder in others
    made: list[Path] = []
    if not is_shared:
        made += [path for each in packed_of(folder, others, home) for path in each.paths]
        builds = tokenizer_builds_of([folder], home) - tokenizer_builds_of(others, home)
        made += [path for path in sorted(builds) if path.is_dir()]
    if manifest.name == DEFAULT_MODEL:
        made += [path for path in downloads_of_default_model(home) if path.exists()]
    return Removal(manifest, folder, (entry_folder, *half_pulled, *made))


def remove_model(model: str, home: Home, *, force: bool = False) -> int:
    """Forget `model` and delete what Millrace itself stored and made for it.

    Returns the bytes freed. Raises UnknownModel as `plan_removal` does, Conflict if a process
    serves the model, unless `force`, or fetches it.
    """
    manifest = plan_removal(model, home).manifest
    entry_name = folder_name(manifest.name if manifest else model)
    with pull_lock(home, entry_name, wait_s=0.0):
        removal = plan_removal(model, home)
        if removal.folder is not None and not force:
            _check_not_served(model, removal.folder)
        freed = 0
        for path in removal.paths:
            if path.parent == home.models:
                # One rename takes it out of the catalogue; deleting may then take its time.
                path = path.rename(trash_path(home, entry_name))
            freed += delete(path)
        return freed


def _check_not_served(model: str, folder: Path) -> None:
    if who := who_serves(folder):
        raise Conflict(
            f"{model} is served by {who}; stop it first, or remove the model all the same: --force"
        )


def _unknown_message(model: str, names: list[str]) -> str:
    nearest = nearest_names(model, names)
    meant = f"did you mean {nearest[0]}? " if nearest else ""
    return f"model {model!r} is not on this machine; {meant}known: {', '.join(names) or 'none'}"
