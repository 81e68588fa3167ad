"""Models that are on this machine already: folders are registered, GGUF files converted."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from millrace.config.home import Home
from millrace.core.errors import ConfigError, UnknownModel

from .catalog import check_names_free
from .entry import ModelEntry, entry_of, read_config
from .gguf_import import convert_gguf
from .gguf_parts import whole_stem
from .licence import UNKNOWN_LICENSE, license_of_folder
from .manifest import Manifest, check_is_model, check_name, folder_name, hash_files, model_files
from .progress import Progress
from .route import with_route
from .staging import discard_staging, publish, pull_lock, staging_folder


def add_model(
    path: Path,
    home: Home,
    *,
    name: str = "",
    aliases: tuple[str, ...] = (),
    stream: TextIO | None = None,
) -> ModelEntry:
    """Register the folder `path`, which stays where it is, or import the GGUF file `path`.

    Raises UnknownModel where there is nothing, Conflict where the name is taken, UnsupportedModel
    for what is no model or cannot be imported.
    """
    path = path.expanduser().absolute()
    if not path.exists():
        raise UnknownModel(f"{path} does not exist", field="path")
    if path.is_file() and path.suffix != ".gguf":
        raise ConfigError(f"{path} is neither a model folder nor a .gguf file", field="path")
    name = check_name(name or (whole_stem(path) if path.is_file() else path.name))
    for alias in aliases:
        check_name(alias)
    entry_folder = folder_name(name)
    with pull_lock(home, entry_folder):
        check_names_free(home, name, aliases)
        discard_staging(home, entry_folder)
        staged = staging_folder(home, entry_folder)
        try:
            if path.is_dir():
                manifest = _registered(path, name, aliases, stream)
            else:
                manifest = _imported(path, staged, name, aliases, stream)
            manifest = with_route(manifest, read_config(path if path.is_dir() else staged))
            manifest.save(staged)
            return entry_of(manifest, publish(home, entry_folder))
        finally:
            discard_staging(home, entry_folder)


def _registered(path: Path, name: str, aliases: tuple[str, ...], stream: TextIO | None) -> Manifest:
    check_is_model(path)
    return Manifest(
        name=name,
        aliases=aliases,
        source=f"folder:{path}",
        license=license_of_folder(path),
        files=hash_files(*_files_and_progress(path, stream), keep_times=True),
        folder=str(path),
    )


def _imported(
    path: Path, staged: Path, name: str, aliases: tuple[str, ...], stream: TextIO | None
) -> Manifest:
    license = convert_gguf(path, staged, stream=stream) or UNKNOWN_LICENSE
    return Manifest(
        name=name,
        aliases=aliases,
        source=f"gguf:{path}",
        license=license,
        files=hash_files(*_files_and_progress(staged, stream), keep_times=False),
    )


def _files_and_progress(folder: Path, stream: TextIO | None) -> tuple[list[Path], Progress]:
    paths = model_files(folder)
    return paths, Progress("hashing", sum(path.stat().st_size for path in paths), stream)
