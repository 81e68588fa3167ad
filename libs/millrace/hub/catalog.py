"""The catalogue: which models are on this machine, and which one a name means.

Every entry is a folder under MILLRACE_HOME/models with a manifest.json. Nothing here imports torch,
transformers or the hub's client, or touches the network.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from millrace.config.home import Home, millrace_home
from millrace.core.errors import Conflict, UnknownModel
from millrace.core.own_command import own_command

from .available import available_names
from .entry import ModelEntry, entry_of, entry_of_folder
from .manifest import MANIFEST_NAME, Manifest, folder_name
from .near_names import nearest_names

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_ALIAS = "smollm2"


def resolve_model(model: str, home: Home | None = None) -> ModelEntry:
    """The entry that `model` names: a name, an alias, a hub id already fetched, or a folder.

    Raises UnknownModel with the command that would fetch it, UnsupportedModel for a folder that
    is not a model.
    """
    home = home or millrace_home()
    found = find_manifest(model, home)
    if found is not None:
        return entry_of(*found)
    if looks_like_path(model):
        path = Path(model).expanduser().absolute()
        if path.is_dir():
            return entry_of_folder(path)
        raise UnknownModel(f"model folder {path} does not exist", field="model")
    raise UnknownModel(_unknown_message(model, home), field="model")


def find_manifest(model: str, home: Home) -> tuple[Manifest, Path] | None:
    """Manifest and folder of the entry called `model`, by name before alias."""
    direct = home.models / folder_name(model)
    if not looks_like_path(model) and (direct / MANIFEST_NAME).is_file():
        manifest = Manifest.load(direct)
        if manifest.name == model:
            return manifest, direct
    for manifest, folder in manifests(home):
        if model == manifest.name or model in manifest.aliases:
            return manifest, folder
    return None


def manifests(home: Home) -> Iterator[tuple[Manifest, Path]]:
    """Every manifest of the catalogue with its folder, by folder name."""
    if not home.models.is_dir():
        return
    for folder in sorted(home.models.iterdir()):
        if not folder.name.startswith(".") and (folder / MANIFEST_NAME).is_file():
            yield Manifest.load(folder), folder


def folder_of(manifest: Manifest, entry_folder: Path) -> Path:
    """Where the model's files are: a registered folder, or that of the entry itself."""
    return Path(manifest.folder) if manifest.folder else entry_folder


def looks_like_path(model: str) -> bool:
    """True for an absolute path and for one that starts with ./, ../ or ~."""
    return os.path.isabs(model) or model.startswith(("./", "../", "~")) or model in (".", "..")


def names_here(home: Home) -> list[str]:
    """Names and aliases of the models on this machine."""
    return sorted(name for each, _ in manifests(home) for name in (each.name, *each.aliases))


def check_names_free(home: Home, name: str, aliases: tuple[str, ...]) -> None:
    """Raises Conflict where one of the names belongs to a model already."""
    for wanted in (name, *aliases):
        found = find_manifest(wanted, home)
        if found is not None:
            raise Conflict(
                f"{wanted!r} is taken by the model {found[0].name} ({found[0].source}); choose "
                f"another with --name, or first: " + own_command(f"models remove {found[0].name}"),
                field="name",
            )


def pull_command(model: str) -> str:
    """What to type so that the model is fetched."""
    return own_command(f"models pull {quote(model)}")


def _unknown_message(model: str, home: Home) -> str:
    if model in (DEFAULT_MODEL, DEFAULT_ALIAS):
        return f"model {model!r} is not on this machine yet; fetch it: {pull_command(model)}"
    parts = [f"model {model!r} is not on this machine"]
    nearest = nearest_names(model, {*names_here(home), DEFAULT_MODEL, *available_names()})
    if nearest:
        parts.append(f"nearest known: {', '.join(nearest)}")
    if "/" in model:
        parts.append(f"fetch it: {pull_command(model)}")
    else:
        target = nearest[0] if nearest else DEFAULT_MODEL
        parts.append(
            f"fetch a model: {pull_command(target)} (or the hub's ORG/NAME); "
            "a folder is given as ./FOLDER"
        )
    return "; ".join(parts)
