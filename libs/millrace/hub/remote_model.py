"""What a repository of the hub has that makes a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from millrace.core.errors import UnsupportedModel
from millrace.core.own_command import own_command
from millrace.engine.quantized import check_no_adapter

from .hub_client import HubClient, RemoteFile, RemoteRepository
from .manifest import MANIFEST_NAME, is_gguf_name

_WANTED_ENDS = (".safetensors", ".json", ".jinja")
_WANTED_NAMES = ("tokenizer.model", "merges.txt", "vocab.txt")


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A repository and those of its files that make a model."""

    client: HubClient
    repository: RemoteRepository
    files: Sequence[RemoteFile]


def look_at(client: HubClient, revision: str) -> RemoteModel:
    """What there is to fetch. Raises as `HubClient.list_files` and `wanted_files` do."""
    repository = client.list_files(revision)
    return RemoteModel(client, repository, wanted_files(repository))


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
    every = {file.name for file in repository.files}
    try:
        check_no_adapter(every)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{repository.repo_id}: {error.message}") from error
    if not any(_is_weights(file) for file in chosen):
        is_gguf = any(is_gguf_name(name) for name in every)
        hint = (
            "; fetch one of its GGUF files yourself, then: " + own_command("models add FILE")
            if is_gguf
            else "; pickled weights are never loaded"
        )
        raise UnsupportedModel(f"{repository.repo_id} has no safetensors weights{hint}")
    for needed in ("config.json", "tokenizer.json"):
        if needed not in names:
            raise UnsupportedModel(f"{repository.repo_id} has no {needed}")
    return tuple(sorted(chosen, key=lambda file: (file.size_bytes, file.name)))


def _is_weights(file: RemoteFile) -> bool:
    return file.name.endswith(".safetensors")
