"""GGUF as an import format: a file in, a folder of safetensors, config and tokenizer out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from .byte_size import format_bytes
from .gguf_config import check_importable, config_json, generation_config_json
from .gguf_metadata import GgufMetadata
from .gguf_parts import read_parts
from .gguf_tensors import tensors_of
from .gguf_tokenizer import check_tokenizer, tokenizer_config_json, tokenizer_json
from .gguf_vocabulary import Vocabulary
from .gguf_weights import check_types, write_weights
from .progress import say

_VOCABULARY_FILE = "tokenizer.json"
_MAX_LICENSE_CHARS = 200


def convert_gguf(source: Path, destination: Path, *, stream: TextIO | None = None) -> str:
    """Write the model of `source` into the existing folder `destination`.

    source: a file, or any part of a split one whose other parts lie beside it. Everything but the
    weights themselves is checked before anything is written. Returns the licence that the file
    names, "" where it names none.

    Raises UnsupportedModel, naming the file, for one that is damaged or incomplete, and for an
    architecture, tensor or tokenizer without an exact counterpart; ConfigError where the `gguf`
    package is missing or the disk is too full.
    """
    _tell(f"reading the header of {source.name}", stream)
    parts = read_parts(source)
    metadata = GgufMetadata(parts[0])
    tensor_names = {tensor.name for part in parts for tensor in part.tensors}
    architecture = check_importable(metadata, tensor_names)
    check_tokenizer(metadata, architecture)
    license = _license(metadata)
    vocabulary = Vocabulary(metadata)
    config = config_json(metadata, architecture, len(vocabulary.tokens), tensor_names)
    tensors = tensors_of(parts, config)
    check_types(tensors)
    files = {
        "config.json": config,
        "generation_config.json": generation_config_json(metadata, vocabulary),
        _VOCABULARY_FILE: tokenizer_json(metadata, vocabulary),
        "tokenizer_config.json": tokenizer_config_json(
            metadata, vocabulary, config["max_position_embeddings"]
        ),
    }
    _tell(
        f"{architecture}, {len(vocabulary.tokens)} tokens, {len(tensors)} tensors in "
        f"{format_bytes(sum(tensor.num_bytes for tensor in tensors))}",
        stream,
    )
    for name, content in files.items():
        _write_json(destination / name, content)
    del files, vocabulary
    write_weights(tensors, destination / "model.safetensors", stream)
    return license


def _license(metadata: GgufMetadata) -> str:
    """It is shown in lists, so that it must be short and harmless to a terminal."""
    license = metadata.try_text("general.license") or ""
    if len(license) > _MAX_LICENSE_CHARS or not license.isprintable():
        raise metadata.wrong("general.license", "no name of a licence")
    return license


def _tell(message: str, stream: TextIO | None) -> None:
    if stream is not None:
        say(message, stream)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    # A vocabulary is read by programs only, and to indent it takes seconds.
    indent = None if path.name == _VOCABULARY_FILE else 2
    path.write_text(json.dumps(content, ensure_ascii=False, indent=indent) + "\n", "utf-8")
