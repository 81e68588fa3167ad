"""Taking a model out of the catalogue."""

from __future__ import annotations

import os
import shutil

from millrace.config.home import Home
from millrace.core.errors import UnknownModel

from .catalog import find_manifest, known_names
from .manifest import folder_name
from .staging import discard_staging, pull_lock, staging_folder


def remove_model(model: str, home: Home) -> int:
    """Forget `model` (name or alias) and delete what Millrace itself stored for it.

    A folder that was only registered is left as it is. Returns the bytes freed. Raises
    UnknownModel where there is neither an entry nor a half-finished pull.
    """
    found = find_manifest(model, home)
    entry_folder = folder_name(found[0].name if found else model)
    with pull_lock(home, entry_folder, wait_s=0.0):
        found = find_manifest(model, home)
        freed = discard_staging(home, entry_folder)
        if found is None and not freed:
            raise UnknownModel(
                f"model {model!r} is not on this machine; known: {', '.join(known_names(home))}",
                field="model",
            )
        if found is None:
            return freed
        manifest, folder = found
        # One rename takes it out of the catalogue; deleting may then take its time.
        trash = staging_folder(home, f"{entry_folder}.removed.{os.getpid()}")
        os.rename(folder, trash)
        shutil.rmtree(trash)
        return freed + (0 if manifest.folder else manifest.size_bytes)
