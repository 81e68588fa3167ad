"""Whether a model folder can be served, found out before anybody starts to serve it.

The engine tells in a process of its own, because that may take torch and transformers, which warn
as they like. Weights are not read: what only they show, a worker finds when it starts.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from millrace.config.home import Home
from millrace.core.errors import ConfigError, UnsupportedModel

from .catalog import find_manifest, folder_of
from .engine_process import run_engine
from .entry import ModelEntry, is_unchanged
from .manifest import Manifest
from .route import decided_by
from .tokenizer_files import read_tokenizer_files

CHECK_TIMEOUT_S = 300.0


def check_servable(folder: Path, home: Home, called: str) -> str:
    """The route that a worker takes with a model folder: "native" or "generic".

    called: what to call the folder in messages. Raises UnsupportedModel with the reason if no
    stack would serve it, ConfigError if that cannot be found out.
    """
    route = check_weights(folder, called)
    if fault := _tokenizer_fault(folder, home):
        raise _refused(folder, called, fault)
    return route


def check_weights(folder: Path, called: str) -> str:
    """The same by config.json and the headers of the weights alone."""
    answer = _ask_engine(folder)
    if answer["refusal"]:
        raise _refused(folder, called, str(answer["refusal"]))
    return str(answer["route"])


def _refused(folder: Path, called: str, refusal: str) -> UnsupportedModel:
    reason = refusal.removeprefix(f"{folder}: ").replace(str(folder), called)
    return UnsupportedModel(f"{called} cannot be served: {reason}", field="model")


def with_check(manifest: Manifest, route: str) -> Manifest:
    """`manifest` with the outcome of `check_servable` written down."""
    return replace(
        manifest, route=route, refusal="", route_by=decided_by(), checked_by=_checked_by()
    )


def check_entry(entry: ModelEntry, home: Home) -> None:
    """`check_servable`, unless it was passed before and neither files nor versions changed since.

    Raises as it does.
    """
    found = find_manifest(entry.name, home)
    if found is None or folder_of(*found) != entry.path:
        check_servable(entry.path, home, entry.name)
        return
    manifest, entry_folder = found
    is_same = is_unchanged(manifest, entry.path)
    if is_same and manifest.checked_by == _checked_by():
        return
    route = check_servable(entry.path, home, entry.name)
    if is_same:
        # A home that can only be read asks anew each time.
        with contextlib.suppress(OSError):
            with_check(manifest, route).save(entry_folder)


def _checked_by() -> str:
    """What an answer depends on besides the folder."""
    try:
        version = metadata.version("millrace")
    except metadata.PackageNotFoundError:
        version = "from source"
    return f"{version}, {decided_by()}"


def _ask_engine(folder: Path) -> dict[str, Any]:
    try:
        said = run_engine("millrace.engine.check_folder", str(folder), timeout_s=CHECK_TIMEOUT_S)
    except ConfigError as error:
        raise ConfigError(f"{folder} could not be checked: {error.message}") from error
    answer: dict[str, Any] = json.loads(said)
    return answer


def _tokenizer_fault(folder: Path, home: Home) -> str:
    """Why its texts cannot be encoded; "" if they can."""
    try:
        description = read_tokenizer_files(folder, home).description
    except ConfigError as error:
        return error.message
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return ""
    try:
        Tokenizer.from_str(json.dumps(description))
    # The library raises plain exceptions of its own.
    except Exception as error:
        return f"its tokenizer cannot be loaded: {error}"
    return ""
