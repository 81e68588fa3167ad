"""One model from the hub into a staging folder: choose the files, fetch, check every hash."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from millrace.config.home import Home
from millrace.core.errors import ConfigError, UnsupportedModel

from .byte_size import format_bytes
from .hub_client import HubClient, RemoteFile, RemoteRepository
from .licence import license_of_folder
from .manifest import (
    MANIFEST_NAME,
    Manifest,
    ModelFile,
    check_is_model,
    hash_model,
    model_files,
    sha256_of,
)
from .progress import Progress, say
from .staging import check_disk

_WANTED_ENDS = (".safetensors", ".json", ".jinja")
_WANTED_NAMES = ("tokenizer.model", "merges.txt", "vocab.txt")
_CHUNK_BYTES = 1 << 20


def fetch_from_hub(
    repo_id: str,
    home: Home,
    staged: Path,
    *,
    name: str,
    aliases: tuple[str, ...] = (),
    revision: str = "main",
    stream: TextIO | None = None,
) -> Manifest:
    """Bring `repo_id` into `staged` and return its manifest.

    Raises UnknownModel (not found), ConfigError (gated, disk full, wrong hash), Unavailable (no
    network, offline) or UnsupportedModel (no safetensors or tokenizer there).
    """
    client = HubClient(repo_id)
    if client.is_offline:
        source, license, fetched = _from_cache(client, home, staged, revision, stream)
        return Manifest(name, aliases, source, license, fetched)
    repository = client.list_files(revision)
    files = wanted_files(repository)
    _forget_others(staged, files)
    missing = sum(file.size_bytes - _bytes_here(staged, file) for file in files)
    check_disk(home.models, missing, f"the model {repo_id}")
    if stream is not None:
        total = format_bytes(sum(file.size_bytes for file in files))
        say(f"fetching {repo_id}: {len(files)} files, {total}", stream)
    fetched = tuple(_fetch_file(client, repository, file, staged, stream) for file in files)
    check_is_model(staged)
    source = f"hub:{repo_id}@{repository.commit}"
    return Manifest(name, aliases, source, repository.license, fetched)


def wanted_files(repository: RemoteRepository) -> tuple[RemoteFile, ...]:
    """Weights as safetensors, settings and tokenizer, of the top folder only.

    Raises UnsupportedModel where the repository has no safetensors or no tokenizer.json.
    """
    chosen = [
        file
        for file in repository.files
        if "/" not in file.name
        and not file.name.startswith(".")
        and file.name != MANIFEST_NAME
        and (file.name.endswith(_WANTED_ENDS) or file.name in _WANTED_NAMES)
    ]
    if any(file.name.startswith("model") and _is_weights(file) for file in chosen):
        # Some repositories carry the same weights again in their author's own layout.
        chosen = [f for f in chosen if f.name.startswith("model") or not _is_weights(f)]
    names = {file.name for file in chosen}
    if not any(_is_weights(file) for file in chosen):
        raise UnsupportedModel(
            f"{repository.repo_id} has no safetensors weights; pickled weights are never loaded"
        )
    for needed in ("config.json", "tokenizer.json"):
        if needed not in names:
            raise UnsupportedModel(f"{repository.repo_id} has no {needed}")
    return tuple(sorted(chosen, key=lambda file: (file.size_bytes, file.name)))


def _is_weights(file: RemoteFile) -> bool:
    return file.name.endswith(".safetensors")


def _fetch_file(
    client: HubClient,
    repository: RemoteRepository,
    file: RemoteFile,
    staged: Path,
    stream: TextIO | None,
) -> ModelFile:
    """One verified file at its place in `staged`. Raises ConfigError where its hash is wrong."""
    final = staged / file.name
    if final.exists():
        sha256 = sha256_of(final, Progress("", 0))
        if _matches(final, file, sha256):
            return ModelFile(file.name, file.size_bytes, sha256)
        final.unlink()
    part = _part_path(staged, file)
    progress = Progress(file.name, file.size_bytes, stream)
    cached = client.cached_file(file.name, repository.commit)
    if cached is not None:
        part.unlink(missing_ok=True)
        link_or_copy(cached, part)
        progress.advance(file.size_bytes)
    else:
        progress.advance(part.stat().st_size if part.exists() else 0)
        client.download(file, repository.commit, part, progress)
    sha256 = sha256_of(part, Progress("", 0))
    if not _matches(part, file, sha256):
        part.unlink()
        raise ConfigError(
            f"{repository.repo_id}/{file.name}: the hash of the fetched file is not the hub's "
            f"({file.content_hash}); it was deleted, pull again"
        )
    os.replace(part, final)
    progress.finish()
    return ModelFile(file.name, file.size_bytes, sha256)


def _matches(path: Path, file: RemoteFile, sha256: str) -> bool:
    if path.stat().st_size != file.size_bytes:
        return False
    if file.sha256:
        return sha256 == file.sha256
    if file.git_sha1:
        return git_blob_sha1(path) == file.git_sha1
    return True


def git_blob_sha1(path: Path) -> str:
    """The id that git gives a file's content; the hub names small files by it."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _part_path(staged: Path, file: RemoteFile) -> Path:
    # With the hash in its name, so that bytes of another revision are never continued.
    return staged / f".{file.name}.{file.content_hash[:12]}.part"


def _bytes_here(staged: Path, file: RemoteFile) -> int:
    for path in (staged / file.name, _part_path(staged, file)):
        if path.exists():
            return min(path.stat().st_size, file.size_bytes)
    return 0


def _forget_others(staged: Path, files: Iterable[RemoteFile]) -> None:
    """Drop what an earlier attempt at another revision left behind."""
    wanted = {file.name for file in files} | {_part_path(staged, file).name for file in files}
    for path in staged.iterdir():
        if path.name not in wanted:
            path.unlink()


def _from_cache(
    client: HubClient, home: Home, staged: Path, revision: str, stream: TextIO | None
) -> tuple[str, str, tuple[ModelFile, ...]]:
    """Without a network: the repository from the hub client's own cache.

    Returns source, licence and files.
    """
    snapshot = client.cached_snapshot(revision)
    check_is_model(snapshot)
    sources = model_files(snapshot)
    total = sum(path.stat().st_size for path in sources)
    check_disk(home.models, total, f"the model {client.repo_id}")
    _forget_others(staged, ())
    for path in sources:
        link_or_copy(path.resolve(), staged / path.name)
    files = hash_model(staged, stream)
    return f"hub:{client.repo_id}@{snapshot.name}", license_of_folder(snapshot), files


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for the same bytes where the disk allows it, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
