"""manifest.json: what the catalogue remembers about one model."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, TextIO

from millrace.core.errors import ConfigError, UnsupportedModel
from millrace.core.own_command import own_command
from millrace.engine.quantized import check_no_adapter
from millrace.engine.tensor_headers import LFS_POINTER, read_header_bytes, weight_files

from .progress import Progress

MANIFEST_NAME = "manifest.json"
_FORMAT = 1
_CHUNK_BYTES = 4 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_MAX_NAME_LENGTH = 96
# One of them is enough: transformers makes the tokenizer.json.
_VOCABULARY_FILES = frozenset(
    {
        "sentencepiece.bpe.model",
        "spiece.model",
        "tekken.json",
        "tiktoken.model",
        "tokenizer.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
    }
)
_MODEL_FILE_ENDS = (".safetensors", ".json", ".jinja", ".model", ".txt")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model; `mtime_ns` is 0 for files that Millrace itself keeps."""

    name: str
    size_bytes: int
    sha256: str
    mtime_ns: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """One entry of the catalogue.

    folder: an outside folder that was only registered, else "". route, refusal, route_by: see
    route.py. checked_by: what found that the model can be served, see servable.py.
    """

    name: str
    aliases: tuple[str, ...]
    source: str
    license: str
    files: tuple[ModelFile, ...]
    folder: str = ""
    route: str = ""
    refusal: str = ""
    route_by: str = ""
    checked_by: str = ""

    @property
    def revision(self) -> str:
        """Content hash: the same files give the same revision wherever they came from."""
        digest = hashlib.blake2b(digest_size=16)
        for file in sorted(self.files, key=lambda file: file.name):
            digest.update(f"{file.name}\0{file.size_bytes}\0{file.sha256}\n".encode())
        return digest.hexdigest()

    @property
    def size_bytes(self) -> int:
        """Bytes of all files together."""
        return sum(file.size_bytes for file in self.files)

    def save(self, folder: Path) -> None:
        """Write manifest.json into `folder`, whole or not at all."""
        content = {
            "format": _FORMAT,
            "name": self.name,
            "aliases": list(self.aliases),
            "source": self.source,
            "revision": self.revision,
            "license": self.license,
            "size_bytes": self.size_bytes,
            "folder": self.folder,
            "route": self.route,
            "refusal": self.refusal,
            "route_by": self.route_by,
            "checked_by": self.checked_by,
            "files": [
                {
                    "name": file.name,
                    "size_bytes": file.size_bytes,
                    "sha256": file.sha256,
                    "mtime_ns": file.mtime_ns,
                }
                for file in self.files
            ],
        }
        partial = folder / f"{MANIFEST_NAME}.partial"
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
        os.replace(partial, folder / MANIFEST_NAME)

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read `folder`'s manifest. Raises ConfigError where it is damaged or from the future."""
        path = folder / MANIFEST_NAME
        try:
            content = json.loads(path.read_text("utf-8"))
            if content["format"] != _FORMAT:
                raise ConfigError(
                    f"{path}: manifest format {content['format']}, this Millrace reads {_FORMAT}"
                )
            return cls._from_json(content)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}: damaged manifest: {error!r}; delete {folder} and fetch or add it again"
            ) from error

    @classmethod
    def _from_json(cls, content: Mapping[str, Any]) -> Manifest:
        return cls(
            name=str(content["name"]),
            aliases=tuple(str(alias) for alias in content["aliases"]),
            source=str(content["source"]),
            license=str(content["license"]),
            folder=str(content["folder"]),
            route=str(content.get("route", "")),
            refusal=str(content.get("refusal", "")),
            route_by=str(content.get("route_by", "")),
            checked_by=str(content.get("checked_by", "")),
            files=tuple(
                ModelFile(
                    str(file["name"]),
                    int(file["size_bytes"]),
                    str(file["sha256"]),
                    int(file["mtime_ns"]),
                )
                for file in content["files"]
            ),
        )


def check_name(name: str) -> str:
    """`name` if a model may be served under it, else ConfigError with the rule."""
    is_fine = _NAME.fullmatch(name) and "--" not in name and len(name) <= _MAX_NAME_LENGTH
    if not is_fine:
        raise ConfigError(
            f"model name {name!r}: use up to {_MAX_NAME_LENGTH} letters, digits, '.', '_', '-', "
            "at most one '/', no '--', starting with a letter or digit",
            field="name",
        )
    return name


def folder_name(name: str) -> str:
    """The entry's folder: org/name is stored as org--name."""
    return name.replace("/", "--")


def model_files(folder: Path) -> list[Path]:
    """The files of `folder` that make the model, sorted by name."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and path.name.endswith(_MODEL_FILE_ENDS)
        and path.name != MANIFEST_NAME
        and not path.name.startswith(".")
    )


def hash_files(
    paths: Iterable[Path], progress: Progress, *, keep_times: bool
) -> tuple[ModelFile, ...]:
    """Size and sha256 of each file; with its modification time where `keep_times`."""
    return tuple(
        ModelFile(
            path.name,
            (status := path.stat()).st_size,
            sha256_of(path, progress),
            status.st_mtime_ns if keep_times else 0,
        )
        for path in paths
    )


def hash_model(
    folder: Path, stream: TextIO | None, *, keep_times: bool = False
) -> tuple[ModelFile, ...]:
    """`hash_files` of all that makes the model, with a bar on `stream`."""
    paths = model_files(folder)
    progress = Progress("hashing", sum(path.stat().st_size for path in paths), stream)
    files = hash_files(paths, progress, keep_times=keep_times)
    progress.finish()
    return files


def sha256_of(path: Path, progress: Progress) -> str:
    """sha256 of a file in hex, counted on `progress`."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            progress.advance(len(chunk))
    return digest.hexdigest()


def quick_revision(folder: Path) -> str:
    """A revision without reading the weights: names, sizes, times and safetensors headers.

    For folders that nobody registered, or that changed since: it may differ between machines, and
    never stays the same when a file is written again.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in model_files(folder):
        status = path.stat()
        digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        if path.suffix == ".safetensors":
            digest.update(read_header_bytes(path))
    return digest.hexdigest()


def check_is_model(folder: Path) -> None:
    """Raises UnsupportedModel where `folder` lacks what every model folder has."""
    every = {path.name for path in folder.iterdir()}
    try:
        check_no_adapter(every)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{folder}: {error.message}") from error
    files = model_files(folder)
    names = {path.name for path in files}
    if "config.json" not in names:
        ggufs = sorted(name for name in every if is_gguf_name(name))
        hint = ""
        if ggufs:
            advice = own_command(f"models add {quote(str(folder / ggufs[0]))}")
            hint = f"; import its GGUF file: {advice}"
        raise UnsupportedModel(f"{folder}: no config.json, so this is not a model folder{hint}")
    if not any(name.endswith(".safetensors") for name in names):
        hint = "; .bin and .pt files are never loaded, convert them to safetensors"
        raise UnsupportedModel(f"{folder}: no *.safetensors weights{hint}")
    if not _VOCABULARY_FILES & names:
        raise UnsupportedModel(
            f"{folder}: no tokenizer.json, nor another vocabulary, so its text cannot be encoded"
        )
    for path in files:
        check_no_pointer(path)
    wanted = weight_files(folder)
    missing = [name for name in wanted if name not in names]
    if missing:
        raise UnsupportedModel(
            f"{folder}: {len(missing)} of {len(wanted)} weight files are missing, "
            f"the first is {missing[0]}"
        )


def check_no_pointer(path: Path) -> None:
    """Raises UnsupportedModel where Git LFS has left a pointer in the place of a file."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UnsupportedModel(
                f"{path} is a Git LFS pointer, not the file itself; fetch it: git lfs pull"
            )


def is_gguf_name(name: str) -> bool:
    """True for a GGUF file by its name."""
    return name.lower().endswith(".gguf")
