"""Bringing a model into the catalogue, from wherever it comes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import TextIO

from millrace.config.home import Home
from millrace.core.errors import ConfigError, MillraceError, UnknownModel, UnsupportedModel
from millrace.core.own_command import own_command

from .available import meant_by
from .catalog import DEFAULT_ALIAS, DEFAULT_MODEL, check_names_free, find_manifest, looks_like_path
from .disk_use import delete
from .entry import ModelEntry, entry_of
from .manifest import Manifest, check_name, folder_name
from .progress import say
from .servable import check_servable, with_check
from .staging import discard_staging, forget_if_empty, publish, pull_lock, staging_folder


def pull_model(
    model: str,
    home: Home,
    *,
    name: str = "",
    hub_revision: str = "main",
    wait_s: float | None = None,
    approve: Callable[[ModelEntry], None] | None = None,
    stream: TextIO | None = None,
) -> ModelEntry:
    """Fetch `model` (the default model's name or alias, or a hub id) unless it is here already.

    `approve` sees a model of the hub before its weights are fetched; what it raises ends the pull.
    Raises UnknownModel for what can be fetched from nowhere, and what the source raises.
    """
    if model in (DEFAULT_MODEL, DEFAULT_ALIAS):
        from .default_model import (
            build_default_model,
            complete_default_model,
            downloads_of_default_model,
        )

        complete_default_model(home)
        entry = _pull(
            DEFAULT_MODEL,
            home,
            lambda staged: build_default_model(home, staged, stream=stream),
            aliases=(DEFAULT_ALIAS,),
            wait_s=wait_s,
            stream=stream,
        )
        # Imported, it is a second copy of the same weights.
        for path in downloads_of_default_model(home):
            delete(path)
        return entry
    if looks_like_path(model):
        raise ConfigError(
            f"{model} is a path; register it: {own_command(f'models add {quote(model)}')}"
        )
    if "/" not in model:
        raise UnknownModel(
            f"{model!r} is neither the default model ({DEFAULT_MODEL}) nor a hub id (ORG/NAME)"
            f"{meant_by(model)}; {own_command('models available')} lists some",
            field="model",
        )
    from .fetch import fetch_from_hub

    served_name = check_name(name or model)
    aliases = () if served_name == model else (model,)
    return _pull(
        served_name,
        home,
        lambda staged: fetch_from_hub(
            model,
            home,
            staged,
            name=served_name,
            aliases=aliases,
            revision=hub_revision,
            approve=approve,
            stream=stream,
        ),
        aliases=aliases,
        wait_s=wait_s,
        stream=stream,
    )


def _pull(
    name: str,
    home: Home,
    build: Callable[[Path], Manifest],
    *,
    aliases: tuple[str, ...] = (),
    wait_s: float | None,
    stream: TextIO | None,
) -> ModelEntry:
    entry_folder = folder_name(name)

    def tell(message: str) -> None:
        if stream is not None:
            say(message, stream)

    with pull_lock(home, entry_folder, wait_s=wait_s, on_wait=tell):
        found = find_manifest(name, home)
        if found is not None and found[0].name == name:
            tell(f"{name} is here already")
            return entry_of(*found)
        check_names_free(home, name, aliases)
        staged = staging_folder(home, entry_folder)
        try:
            manifest = build(staged)
            manifest = with_check(manifest, check_servable(staged, home, name))
        except UnsupportedModel:
            # More bytes will not make it another model.
            discard_staging(home, entry_folder)
            raise
        except MillraceError:
            forget_if_empty(staged)
            raise
        manifest.save(staged)
        return entry_of(manifest, publish(home, entry_folder))
