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
            + own_command(f"models remove {manifest.name}")
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
    return entry_of_files(
        path,
        name=path.name,
        revision=quick_revision(path),
        license="unknown",
        size_bytes=sum(file.stat().st_size for file in model_files(path)),
    )


def entry_of_files(
    path: Path, *, name: str, revision: str, license: str, size_bytes: int
) -> ModelEntry:
    """The entry of a folder about which the rest is known. Raises UnsupportedModel without a
    config.json."""
    config = read_config(path)
    return _entry(
        path,
        config,
        decide_route(config),
        name=name,
        aliases=(),
        revision=revision,
        license=license,
        size_bytes=size_bytes,
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
    """The longest sequence that is served; 0 where config.json does not say.

    With longrope that is the length up to which the short factors hold: beyond, what becomes of a
    token depends on the others of its step (engine/models/exact_length.py).
    """
    sources = (config, _mapping(config.get("text_config")))
    length = next(
        (n for source in sources for key in _LENGTH_KEYS if (n := _count(source, key))), 0
    )
    originals = [n for source in sources if (n := _longrope_original(source))]
    return min([length, *originals]) if length else 0


def _longrope_original(config: Mapping[str, Any]) -> int:
    """Original length of a model with longrope, called "su" in older files; 0 of any other."""
    rope = _mapping(config.get("rope_parameters") or config.get("rope_scaling"))
    if rope.get("rope_type", rope.get("type")) not in ("longrope", "su"):
        return 0
    key = "original_max_position_embeddings"
    return _count(rope, key) or _count(config, key)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _count(source: Mapping[str, Any], key: str) -> int:
    value = source.get(key)
    return value if type(value) is int and value > 0 else 0
