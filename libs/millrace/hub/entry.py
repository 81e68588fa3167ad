"""A model of the catalogue, as everybody else sees it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.core.errors import UnsupportedModel
from millrace.core.own_command import own_command

from .manifest import Manifest, check_is_model, model_files, quick_revision
from .route import decide_route, remembered_route

_LENGTH_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "seq_length",
    "n_ctx",
)


@dataclass(frozen=True)
class ModelEntry:
    """One model on this machine.

    path: folder with config.json, generation_config.json, *.safetensors and the tokenizer.
    revision: content hash. route: native, generic or refused; `refusal` says why.
    """

    name: str
    aliases: tuple[str, ...]
    path: Path
    revision: str
    license: str
    size_bytes: int
    architecture: str
    route: str
    refusal: str
    max_model_len: int


def entry_of(manifest: Manifest, folder: Path) -> ModelEntry:
    """The entry whose manifest lies in `folder`. Raises UnsupportedModel for a broken one."""
    path = Path(manifest.folder) if manifest.folder else folder
    if not path.is_dir():
        raise UnsupportedModel(
            f"model {manifest.name}: its folder {path} is gone; put it back, or forget the model: "
            f"{own_command(f'models remove {manifest.name}')}"
        )
    config = read_config(path)
    is_same = is_unchanged(manifest, path)
    return _entry(
        path,
        config,
        remembered_route(manifest, config) if is_same else decide_route(config),
        name=manifest.name,
        aliases=manifest.aliases,
        revision=manifest.revision if is_same else quick_revision(path),
        license=manifest.license,
        size_bytes=manifest.size_bytes,
    )


def entry_of_folder(path: Path) -> ModelEntry:
    """The entry of a folder that nobody registered. Raises UnsupportedModel for any other."""
    check_is_model(path)
    config = read_config(path)
    return _entry(
        path,
        config,
        decide_route(config),
        name=path.name,
        aliases=(),
        revision=quick_revision(path),
        license="unknown",
        size_bytes=sum(file.stat().st_size for file in model_files(path)),
    )


def _entry(
    path: Path,
    config: Mapping[str, Any],
    route: tuple[str, str],
    *,
    name: str,
    aliases: tuple[str, ...],
    revision: str,
    license: str,
    size_bytes: int,
) -> ModelEntry:
    return ModelEntry(
        name=name,
        aliases=aliases,
        path=path,
        revision=revision,
        license=license,
        size_bytes=size_bytes,
        architecture=architecture_of(config),
        route=route[0],
        refusal=route[1],
        max_model_len=max_model_len_of(config),
    )


def is_unchanged(manifest: Manifest, path: Path) -> bool:
    """False where a file was written, removed or added since the hashes were taken."""
    names = {file.name for file in manifest.files}
    if names and any(file.name not in names for file in model_files(path)):
        return False
    for file in manifest.files:
        try:
            status = (path / file.name).stat()
        except FileNotFoundError:
            return False
        if status.st_size != file.size_bytes:
            return False
        if file.mtime_ns and status.st_mtime_ns != file.mtime_ns:
            return False
    return True


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder. Raises UnsupportedModel where there is none to read."""
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UnsupportedModel(f"{path}: holds no settings")
    return content


def architecture_of(config: Mapping[str, Any]) -> str:
    """The class name that config.json gives, else its model type."""
    names = config.get("architectures") or [config.get("model_type") or "unknown"]
    return str(names[0])


def max_model_len_of(config: Mapping[str, Any]) -> int:
    """The longest sequence the model was made for; 0 where config.json does not say."""
    for source in (config, config.get("text_config") or {}):
        for key in _LENGTH_KEYS:
            if source.get(key):
                return int(source[key])
    return 0
