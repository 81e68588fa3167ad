"""Every tokenizer class gives the ids of transformers, whatever it does to its tokenizer.json."""

from __future__ import annotations

import itertools
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from millrace.core.chat import ChatMessage
from millrace.core.detokenize import DecodeRow
from millrace.core.errors import ConfigError
from millrace.hub.tokenizer_files import OVERRIDING_MODEL_TYPES
from millrace.testing.tokenizers import (
    change_settings,
    change_tokenizer,
    write_byte_level,
    write_llama2,
    write_sentencepiece,
    write_unigram,
    write_word_level,
)
from millrace.tokenizer.codec import Codec

TEXTS = (
    "Hi",
    " The quick brown fox",
    "the  lazy\n\n dog. It's gone, isn't it ?",
    "Größe 東京 😀 a\u0301",
    "<think>aloud</think>",
    "<|im_end|>",
    "",
    " ",
)
CHATS = (
    [("user", "The quick brown fox")],
    [("user", " a "), ("assistant", "b\n"), ("user", "你好 😀")],
)
WRITERS: dict[str, Callable[[Path], Path]] = {
    "byte_level": write_byte_level,
    "sentencepiece": write_sentencepiece,
    "llama2": write_llama2,
    "unigram": write_unigram,
    "word_level": write_word_level,
}
FLAGS = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}


@dataclass(frozen=True)
class Folder:
    """What is written: settings over those of the writer, config.json if there is any."""

    writer: str
    settings: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = {**self.settings, **self.config, **self.files}
        return "-".join([self.writer, *(f"{key}={value}" for key, value in parts.items())])

    def write(self, originals: Path, path: Path) -> Path:
        shutil.copytree(originals / self.writer, path)
        change_settings(path, **self.settings)
        for name, content in self.files.items():
            (path / name).write_text(json.dumps(content))
        if self.config:
            (path / "config.json").write_text(json.dumps(self.config))
        return path


def _llama_folders() -> Iterator[Folder]:
    classes = ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer")
    legacy: tuple[dict[str, bool], ...] = ({}, {"legacy": True}, {"legacy": False})
    prefix: tuple[dict[str, bool], ...] = (
        {},
        {"add_prefix_space": True},
        {"add_prefix_space": False},
    )
    for name, *flags in itertools.product(classes, legacy, prefix):
        yield Folder("llama2", {"tokenizer_class": name, **flags[0], **flags[1]})
    for flag in prefix:
        yield Folder("sentencepiece", {"tokenizer_class": "LlamaTokenizer", **flag})


def _byte_level_folders() -> Iterator[Folder]:
    classes = (
        "GPT2Tokenizer",
        "GPT2TokenizerFast",
        "Qwen2Tokenizer",
        "Qwen3_5Tokenizer",
        "GPTNeoXTokenizer",
        "RobertaTokenizer",
        "WhisperTokenizer",
        "CohereTokenizer",
        "PreTrainedTokenizerFast",
    )
    for name, flag in itertools.product(classes, ({}, {"add_prefix_space": True})):
        yield Folder("byte_level", {"tokenizer_class": name, **flag})


def _class_folders() -> Iterator[Folder]:
    """Classes on files that others wrote, and none at all."""
    for writer in WRITERS:
        for name in ("PreTrainedTokenizerFast", "PreTrainedTokenizer", "NoSuchTokenizer"):
            yield Folder(writer, {"tokenizer_class": name})
    yield Folder("sentencepiece", {"tokenizer_class": "GemmaTokenizer"})
    yield Folder("llama2", {"tokenizer_class": "NllbTokenizer"})
    yield Folder("unigram", {"tokenizer_class": "T5Tokenizer"})
    yield Folder("unigram", {"tokenizer_class": "XLMRobertaTokenizer"})
    yield Folder("unigram", {"tokenizer_class": "XGLMTokenizer"})
    yield Folder("word_level", {"tokenizer_class": "BertTokenizer"})


def _config_folders() -> Iterator[Folder]:
    """The class follows from config.json too."""
    plain = {"tokenizer_class": "PreTrainedTokenizerFast"}
    for model_type in ("llama", "mistral", "phi3", "gemma", *sorted(OVERRIDING_MODEL_TYPES)):
        # Siglip2Tokenizer needs an <unk>.
        writer = "sentencepiece" if model_type == "siglip2" else "byte_level"
        yield Folder(writer, plain, {"model_type": model_type})
    for model_type in ("llama", "gemma"):
        yield Folder("llama2", {"tokenizer_class": None}, {"model_type": model_type})
    yield Folder("byte_level", plain, {"model_type": "llama", "model_name": "qwen2"})


def _flag_folders() -> Iterator[Folder]:
    for writer, name in (
        ("byte_level", "PreTrainedTokenizerFast"),
        ("sentencepiece", "PreTrainedTokenizerFast"),
        ("sentencepiece", "LlamaTokenizer"),
    ):
        for flags in (
            {"add_bos_token": True},
            {"add_bos_token": False, "add_eos_token": True},
            {"clean_up_tokenization_spaces": True},
            {"unk_token": None},
            {"eos_token": {"content": "</s>", **FLAGS, "__type": "AddedToken"}},
            {"pad_token": "<pad>", "additional_special_tokens": ["<tool>"]},
            {"extra_special_tokens": {"image_token": "<image>"}},
            # Flags that say otherwise than tokenizer.json.
            {"added_tokens_decoder": {"0": {"content": "the", "special": False, **FLAGS}}},
            {"added_tokens_decoder": {"2": {"content": "lazy", "special": True, **FLAGS}}},
        ):
            yield Folder(writer, {"tokenizer_class": name, **flags})
        for file in (
            {"special_tokens_map.json": {"pad_token": "<pad>", "bos_token": "the"}},
            {"added_tokens.json": {"<one>": 700, "fox": 701}},
        ):
            yield Folder(writer, {"tokenizer_class": name}, files=file)


FOLDERS = [
    *_llama_folders(),
    *_byte_level_folders(),
    *_class_folders(),
    *_config_folders(),
    *_flag_folders(),
]


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("originals")
    for name, write in WRITERS.items():
        write(base / name)
    return base


def _reference(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _differences(codec: Codec, reference: Any) -> Iterator[tuple[Any, ...]]:
    for text in TEXTS:
        ours = codec.encode_text(text)
        theirs = reference(text, split_special_tokens=True)["input_ids"]
        if ours != theirs:
            yield text, ours, theirs
        ours_text = codec.decode_row(DecodeRow((), 0, theirs, True)).text
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        if ours_text != (theirs_text := reference.decode(theirs, **options)):
            yield theirs, ours_text, theirs_text
    for turns in CHATS if reference.chat_template else ():
        ours = codec.encode_chat([ChatMessage(*turn) for turn in turns])
        messages = [{"role": role, "content": content} for role, content in turns]
        theirs = reference.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        if ours != theirs:
            yield turns, ours, theirs
    if codec.vocab_size != len(reference):
        yield "size", codec.vocab_size, len(reference)


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_folder_gives_the_ids_and_the_text_of_transformers(
    folder: Folder, originals: Path, tmp_path: Path, load: Callable[[Path], Codec]
) -> None:
    path = folder.write(originals, tmp_path / "model")
    assert not list(_differences(load(path), _reference(path)))


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer"])
def test_folder_of_vocabulary_and_merges_gives_the_ids_of_transformers(
    name: str, tmp_path: Path, load: Callable[[Path], Codec]
) -> None:
    change_settings(write_byte_level(tmp_path), tokenizer_class=name)
    model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "merges.txt").write_text(merges)

    assert not list(_differences(load(tmp_path), _reference(tmp_path)))


def test_extra_space_is_gone_behind_the_marks_of_a_conversation(
    tmp_path: Path, load: Callable[[Path], Codec]
) -> None:
    change_settings(write_llama2(tmp_path), tokenizer_class="LlamaTokenizer")
    codec = load(tmp_path)

    ids = codec.encode_chat([ChatMessage("user", "Hi")])

    bos, first = ids[:2]
    assert (codec.piece(bos), codec.piece(first)[:1]) == (b"<s>", b"[")


def test_spaces_before_punctuation_are_kept_whatever_the_settings_say(
    tmp_path: Path, load: Callable[[Path], Codec]
) -> None:
    change_settings(write_unigram(tmp_path), clean_up_tokenization_spaces=True)
    codec = load(tmp_path)
    ids = codec.encode_text("the dog , you")

    assert codec.decode_row(DecodeRow((), 0, ids, True)).text == "the dog , you"
    assert _reference(tmp_path).decode(ids) == "the dog, you"


def test_end_of_text_behind_prompts_is_warned_about(
    tmp_path: Path, load: Callable[[Path], Codec], caplog: pytest.LogCaptureFixture
) -> None:
    write_sentencepiece(tmp_path)
    ends = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}]
    token = {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}}
    change_tokenizer(
        tmp_path,
        post_processor={
            "type": "TemplateProcessing",
            "single": ends,
            "pair": ends,
            "special_tokens": token,
        },
    )
    with caplog.at_level(logging.WARNING):
        codec = load(tmp_path)

    assert codec.encode_text("Hi")[-1] == 2
    assert "'</s>' behind every plain prompt" in caplog.text


def test_tokenizer_that_cannot_encode_is_refused(
    tmp_path: Path, load: Callable[[Path], Codec]
) -> None:
    change_settings(write_byte_level(tmp_path), tokenizer_class="CodeLlamaTokenizer")
    with pytest.raises(ConfigError, match="cannot encode: Unk token `<unk>`"):
        load(tmp_path)
