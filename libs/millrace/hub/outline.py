"""A model of the hub without its weights: enough to judge it before gigabytes are fetched.

Small files come whole. Of each weight file comes the header, into a file of the right length that
has a hole where the tensors would be; whoever reads headers cannot tell the difference.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from millrace.core.errors import UnsupportedModel

from .entry import ModelEntry, entry_of_files, entry_of_folder
from .hub_client import HubClient, RemoteFile
from .remote_model import RemoteModel, look_at
from .servable import check_weights

# A header of 7B models takes some 30 kB per file.
_FIRST_BYTES = 256 << 10
_MAX_HEADER_BYTES = 100 << 20
_MAX_FILE_BYTES = 4 << 20
# Beside what every weight file needs: read by nobody who judges a model, and large.
_UNREAD = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model")

Approve = Callable[[ModelEntry], None]


@contextmanager
def outline_of(remote: RemoteModel) -> Iterator[ModelEntry]:
    """The model as an entry whose folder lasts as long as the context.

    Raises UnsupportedModel for weights that are no safetensors, and as `HubClient` does.
    """
    with tempfile.TemporaryDirectory(prefix="millrace-outline-") as scratch:
        folder = Path(scratch)
        for file in remote.files:
            if file.name.endswith(".safetensors"):
                _write_hollow(remote, file, folder / file.name)
            elif file.name not in _UNREAD and file.size_bytes <= _MAX_FILE_BYTES:
                (folder / file.name).write_bytes(_read(remote, file, file.size_bytes))
        repository = remote.repository
        yield entry_of_files(
            folder,
            name=repository.repo_id,
            revision=repository.commit,
            license=repository.license,
            size_bytes=sum(file.size_bytes for file in remote.files),
        )


@contextmanager
def remote_entry(repo_id: str) -> Iterator[ModelEntry]:
    """A model of the hub that a worker would serve, for as long as the context lasts.

    Without a network the hub client's own cache must have it. Raises as `check_outline` does, and
    as `HubClient` does.
    """
    client = HubClient(repo_id)
    if client.is_offline:
        entry = entry_of_folder(client.cached_snapshot("main"))
        check_weights(entry.path, repo_id)
        yield replace(entry, name=repo_id)
        return
    with outline_of(look_at(client, "main")) as entry:
        check_weights(entry.path, repo_id)
        yield entry


def check_outline(remote: RemoteModel, approve: Approve | None = None) -> None:
    """Raises UnsupportedModel with the reason if config.json or the headers show that no worker
    would serve the model, and whatever `approve` raises."""
    with outline_of(remote) as entry:
        check_weights(entry.path, remote.repository.repo_id)
        if approve is not None:
            approve(entry)


def _read(remote: RemoteModel, file: RemoteFile, num_bytes: int) -> bytes:
    return remote.client.read_start(file, remote.repository.commit, num_bytes)


def _write_hollow(remote: RemoteModel, file: RemoteFile, path: Path) -> None:
    start = _read(remote, file, min(_FIRST_BYTES, file.size_bytes))
    if len(start) >= 8:
        (length,) = struct.unpack("<Q", start[:8])
        end = 8 + length
        if end > min(file.size_bytes, _MAX_HEADER_BYTES):
            raise UnsupportedModel(
                f"{remote.repository.repo_id}/{file.name} is no complete safetensors file"
            )
        if end > len(start):
            start = _read(remote, file, end)
        start = start[:end]
    with path.open("wb") as output:
        output.write(start)
        output.truncate(file.size_bytes)
