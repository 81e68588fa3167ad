"""Tokenizers that transformers changes while it loads them, built once and kept.

What transformers gets to see is a folder of links to the model's tokenizer files, and the hash of
exactly these is the name of the result: changed files are built again, models with the same
tokenizer share one. A model folder itself is only ever read.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from millrace.config.home import Home
from millrace.core.errors import ConfigError

from .engine_process import run_engine
from .manifest import MANIFEST_NAME

# Part of the name of every build; as pinned in pyproject.toml.
TRANSFORMERS_VERSION = "5.23.0"
BUILD_TIMEOUT_S = 300.0
SETTINGS_NAME = "tokenizer_config.json"
_SOURCE_ENDS = (".json", ".txt", ".model", ".tiktoken", ".codes", ".tokenizer")
_OTHER_FILES = frozenset({SETTINGS_NAME, "generation_config.json", MANIFEST_NAME})


def built_tokenizer(folder: Path, settings: Mapping[str, Any], home: Home) -> Path:
    """The folder that holds the tokenizer of `folder` as transformers has it, built if it is new.

    settings: tokenizer_config.json without the chat template, which takes no part. Raises
    ConfigError if it can neither be found nor built.
    """
    kept = kept_folder(folder, settings, home)
    if not kept.is_dir():
        _build(folder, settings, kept)
    return kept


def builds_folder(home: Home) -> Path:
    """One folder for each tokenizer that was built."""
    return home.cache / "tokenizers"


def kept_folder(folder: Path, settings: Mapping[str, Any], home: Home) -> Path:
    """Where the tokenizer of `folder` is kept once it is built."""
    digest = hashlib.blake2b(TRANSFORMERS_VERSION.encode(), digest_size=16)
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for path in _sources(folder):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "blake2b").hexdigest()
        digest.update(f"\n{path.name}\0{content}".encode())
    return builds_folder(home) / digest.hexdigest()


def _sources(folder: Path) -> Iterator[Path]:
    """What transformers may read of a model folder, beside the settings."""
    for path in sorted(folder.iterdir()):
        is_other = path.name in _OTHER_FILES or path.name.endswith(".index.json")
        if path.name.endswith(_SOURCE_ENDS) and not is_other and path.is_file():
            yield path


def _build(folder: Path, settings: Mapping[str, Any], kept: Path) -> None:
    if find_spec("transformers") is None:
        raise ConfigError(
            "transformers changes this tokenizer while it loads it, and is not installed here; "
            "start once with this MILLRACE_HOME where the engine is installed, or save the "
            "tokenizer as PreTrainedTokenizerFast"
        )
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=kept.parent) as scratch:
            source, target = Path(scratch, "source"), Path(scratch, "target")
            source.mkdir()
            target.mkdir()
            _link_sources(folder, settings, source)
            _save_in_child(source, target)
            _publish(target, kept)
    except OSError as error:
        raise ConfigError(f"its tokenizer cannot be kept: {error}") from error


def _link_sources(folder: Path, settings: Mapping[str, Any], source: Path) -> None:
    (source / SETTINGS_NAME).write_text(json.dumps(settings), "utf-8")
    for path in _sources(folder):
        (source / path.name).symlink_to(path.resolve())


def _save_in_child(source: Path, target: Path) -> None:
    try:
        run_engine(
            "millrace.engine.save_tokenizer", str(source), str(target), timeout_s=BUILD_TIMEOUT_S
        )
    except ConfigError as error:
        raise ConfigError(f"transformers cannot load its tokenizer: {error.message}") from error


def _publish(target: Path, kept: Path) -> None:
    """Another process may have built the same in the meantime; either one will do."""
    for path in target.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    try:
        target.rename(kept)
    except OSError:
        if not kept.is_dir():
            raise
