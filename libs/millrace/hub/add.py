"""Models that are on this machine already: folders are registered, GGUF files converted."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

from millrace.config.home import Home
from millrace.core.errors import ConfigError, UnknownModel

from .catalog import check_names_free
from .entry import ModelEntry, entry_of
from .gguf_header import GGUF_MAGIC
from .gguf_import import convert_gguf
from .gguf_parts import whole_stem
from .licence import UNKNOWN_LICENSE, license_of_folder
from .manifest import (
    Manifest,
    check_is_model,
    check_name,
    check_no_pointer,
    folder_name,
    hash_model,
    is_gguf_name,
)
from .servable import check_servable, with_check
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
    for what is no model, cannot be imported or cannot be served; then nothing is kept.
    """
    path = path.expanduser().absolute()
    if not path.exists():
        raise UnknownModel(f"{path} does not exist", field="path")
    if not path.is_dir():
        _check_is_gguf(path)
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
                manifest = _registered(path, home, name, aliases, stream)
            else:
                manifest = _imported(path, home, staged, name, aliases, stream)
            manifest.save(staged)
            return entry_of(manifest, publish(home, entry_folder))
        finally:
            discard_staging(home, entry_folder)


def _check_is_gguf(path: Path) -> None:
    """By its content, for such a file may have any name; a broken one is told by its reader."""
    if not path.is_file():
        raise ConfigError(f"{path} is neither a folder nor a file", field="path")
    check_no_pointer(path)
    with path.open("rb") as file:
        is_gguf = file.read(len(GGUF_MAGIC)) == GGUF_MAGIC
    if not is_gguf and not is_gguf_name(path.name):
        raise ConfigError(f"{path} is neither a model folder nor a GGUF file", field="path")


def _registered(
    path: Path, home: Home, name: str, aliases: tuple[str, ...], stream: TextIO | None
) -> Manifest:
    check_is_model(path)
    # Before the weights are read for their hashes, which takes its time.
    route = check_servable(path, home, str(path))
    manifest = Manifest(
        name=name,
        aliases=aliases,
        source=f"folder:{path}",
        license=license_of_folder(path),
        files=hash_model(path, stream, keep_times=True),
        folder=str(path),
    )
    return with_check(manifest, route)


def _imported(
    path: Path,
    home: Home,
    staged: Path,
    name: str,
    aliases: tuple[str, ...],
    stream: TextIO | None,
) -> Manifest:
    license = convert_gguf(path, staged, stream=stream) or UNKNOWN_LICENSE
    route = check_servable(staged, home, str(path))
    manifest = Manifest(
        name=name,
        aliases=aliases,
        source=f"gguf:{path}",
        license=license,
        files=hash_model(staged, stream),
    )
    return with_check(manifest, route)
