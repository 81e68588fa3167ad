"""Codecs of every kind of tokenizer, each beside transformers' view of the same folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from millrace.config.home import Home, millrace_home
from millrace.core.errors import ConfigError
from millrace.engine.save_tokenizer import save_tokenizer
from millrace.hub import tokenizer_build
from millrace.testing.tokenizers import (
    write_byte_level,
    write_sentencepiece,
    write_unigram,
    write_word_level,
)
from millrace.tokenizer.codec import Codec, load_codec


def _write_always(folder: Path) -> Path:
    return write_sentencepiece(folder, prepend_scheme="always")


WRITERS: dict[str, Callable[[Path], Path]] = {
    "byte_level": write_byte_level,
    "sentencepiece": write_sentencepiece,
    "sentencepiece_always": _write_always,
    "unigram": write_unigram,
    "word_level": write_word_level,
}


@dataclass
class Pair:
    """Our codec and transformers' tokenizer of one folder."""

    folder: Path
    codec: Codec

    @cached_property
    def reference(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder)

    def reference_chat(self, messages: list[dict[str, str]]) -> list[int]:
        encoding = self.reference.apply_chat_template(messages, add_generation_prompt=True)
        return list(encoding["input_ids"])


def _save_here(source: Path, target: Path) -> None:
    try:
        save_tokenizer(source, target)
    except Exception as error:
        raise ConfigError(f"transformers cannot load its tokenizer: {error}") from error


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """Where tokenizers are kept that transformers has to build: here, not in three seconds each in
    a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_build, "_save_in_child", _save_here)
        yield Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def load(home: Home) -> Callable[[Path], Codec]:
    """`load_codec` with that home."""
    return lambda folder: load_codec(folder, home)


def _pair(folder: Path) -> Pair:
    return Pair(folder, load_codec(folder))


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    base = tmp_path_factory.mktemp("tokenizers")
    return {kind: _pair(write(base / kind)) for kind, write in WRITERS.items()}


@pytest.fixture(params=sorted(WRITERS))
def pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    return pairs[request.param]


@pytest.fixture(params=["byte_level", "sentencepiece", "sentencepiece_always", "unigram"])
def chat_pair(request: pytest.FixtureRequest, pairs: dict[str, Pair]) -> Pair:
    return pairs[request.param]


@pytest.fixture(scope="session")
def default_pair() -> Pair:
    folder = millrace_home().models / "smollm2-135m-instruct"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("the default model is not on this machine")
    return _pair(folder)
