"""The tokenizer of a model folder: read as it is, or built once as transformers has it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from millrace.config.home import Home
from millrace.core.errors import ConfigError, UnsupportedModel
from millrace.engine.save_tokenizer import save_tokenizer
from millrace.hub import tokenizer_build, tokenizer_files
from millrace.hub.manifest import check_is_model
from millrace.hub.tokenizer_files import read_tokenizer_files, tokenizer_build_of
from millrace.testing.tokenizers import (
    change_settings,
    change_tokenizer,
    write_byte_level,
    write_llama2,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Builds here instead of in a process of its own, and tells how often."""
    done: list[Path] = []

    def save(source: Path, target: Path) -> None:
        done.append(source)
        save_tokenizer(source, target)

    monkeypatch.setattr(tokenizer_build, "_save_in_child", save)
    return done


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return write_byte_level(tmp_path / "plain")


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    folder = change_settings(write_llama2(tmp_path / "llama"), tokenizer_class="LlamaTokenizer")
    (folder / "config.json").write_text('{"model_type": "llama", "vocab_size": 600}')
    return folder


def _kept(home: Home) -> list[Path]:
    return sorted((home.cache / "tokenizers").glob("*"))


def test_plain_folder_is_read_as_it_is(plain: Path, home: Home, builds: list[Path]) -> None:
    files = read_tokenizer_files(plain, home)

    assert files.description["model"] == json.loads((plain / "tokenizer.json").read_text())["model"]
    assert files.named_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    assert not builds
    assert not home.root.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: change_settings(folder, tokenizer_class="GPT2Tokenizer"),
        lambda folder: change_settings(folder, add_prefix_space=True),
        lambda folder: change_settings(folder, pad_token="<pad>"),
        lambda folder: change_settings(
            folder, eos_token={"__type": "AddedToken", "content": "</s>"}
        ),
        lambda folder: change_settings(folder, pad_token="<think>"),
        lambda folder: (folder / "special_tokens_map.json").write_text("{}"),
        lambda folder: (folder / "added_tokens.json").write_text("{}"),
        lambda folder: (folder / "config.json").write_text('{"model_type": "qwen2"}'),
        lambda folder: (folder / "config.json").write_text('{"model_name": "qwen2"}'),
    ],
)
def test_whatever_may_change_ids_is_left_to_transformers(
    plain: Path, home: Home, builds: list[Path], change: Callable[[Path], Any]
) -> None:
    change(plain)
    read_tokenizer_files(plain, home)
    assert len(builds) == 1


def test_tokenizer_is_built_once_and_the_folder_is_left_alone(
    llama: Path, home: Home, builds: list[Path]
) -> None:
    before = sorted(llama.iterdir())
    first = read_tokenizer_files(llama, home)
    second = read_tokenizer_files(llama, home)

    assert first == second
    assert first.description["normalizer"] is None
    assert first.description["pre_tokenizer"]["type"] == "Metaspace"
    assert len(builds) == 1
    assert sorted(llama.iterdir()) == before
    assert len(_kept(home)) == 1


def test_copy_of_a_model_shares_what_was_built(
    llama: Path, home: Home, builds: list[Path], tmp_path: Path
) -> None:
    read_tokenizer_files(llama, home)
    llama.rename(tmp_path / "other name")
    read_tokenizer_files(tmp_path / "other name", home)
    assert len(builds) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: change_settings(folder, legacy=False),
        lambda folder: change_settings(folder, tokenizer_class="CodeLlamaTokenizer"),
        lambda folder: (folder / "config.json").write_text('{"model_type": "gemma"}'),
        lambda folder: (folder / "added_tokens.json").write_text('{"<one>": 553}'),
        lambda folder: change_tokenizer(folder, post_processor=None),
    ],
)
def test_changed_files_are_built_again(
    llama: Path, home: Home, builds: list[Path], change: Callable[[Path], Any]
) -> None:
    read_tokenizer_files(llama, home)
    change(llama)
    read_tokenizer_files(llama, home)
    assert len(builds) == 2


@pytest.mark.parametrize("name", ["chat_template.jinja", "generation_config.json", "README.md"])
def test_what_takes_no_part_builds_nothing_again(
    llama: Path, home: Home, builds: list[Path], name: str
) -> None:
    read_tokenizer_files(llama, home)
    (llama / name).write_text("{}")
    change_settings(llama, chat_template="{{ messages }}")
    files = read_tokenizer_files(llama, home)
    assert files.template == ("{}" if name == "chat_template.jinja" else "{{ messages }}")
    assert len(builds) == 1


def test_named_tokens_of_the_class_are_variables_of_the_template(
    llama: Path, home: Home, builds: list[Path]
) -> None:
    (llama / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    named = read_tokenizer_files(llama, home).named_tokens
    assert named == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def test_where_a_tokenizer_is_kept_is_known_without_building_it(
    llama: Path, home: Home, builds: list[Path]
) -> None:
    told = tokenizer_build_of(llama, home)
    assert not told.exists() and builds == []

    read_tokenizer_files(llama, home)

    assert _kept(home) == [told]


@pytest.fixture
def no_transformers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tokenizer_build, "find_spec", lambda name: None)
    yield


def test_plain_folder_needs_no_transformers(plain: Path, home: Home, no_transformers: None) -> None:
    assert read_tokenizer_files(plain, home).named_tokens


def test_folder_that_needs_transformers_says_so(
    llama: Path, home: Home, no_transformers: None
) -> None:
    with pytest.raises(ConfigError, match=f"{llama}: .*is not installed here; .*MILLRACE_HOME"):
        read_tokenizer_files(llama, home)


def test_what_was_built_elsewhere_needs_no_transformers(
    llama: Path, home: Home, builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_tokenizer_files(llama, home)
    monkeypatch.setattr(tokenizer_build, "find_spec", lambda name: None)
    assert read_tokenizer_files(llama, home) == first


def test_code_of_the_checkpoint_is_never_run(llama: Path, home: Home, builds: list[Path]) -> None:
    auto_map = {"AutoTokenizer": ["tokenization_x.Slow", "tokenization_x.Fast"]}
    change_settings(llama, tokenizer_class="Fast", auto_map=auto_map)
    trap = llama / "ran"
    (llama / "tokenization_x.py").write_text(f"open({str(trap)!r}, 'w')\n")

    with pytest.raises(ConfigError, match="trust_remote_code"):
        read_tokenizer_files(llama, home)
    assert not trap.exists()
    assert _kept(home) == []


@pytest.mark.parametrize("path", ["cache", "cache/tokenizers"])
def test_full_or_read_only_home_is_told(
    llama: Path, home: Home, builds: list[Path], path: str
) -> None:
    (home.root / path).parent.mkdir(parents=True)
    (home.root / path).write_text("")
    with pytest.raises(ConfigError, match=f"{llama}: its tokenizer cannot be kept: .*{path}"):
        read_tokenizer_files(llama, home)


def test_damaged_build_is_told_with_its_place(llama: Path, home: Home, builds: list[Path]) -> None:
    read_tokenizer_files(llama, home)
    (kept,) = _kept(home)
    (kept / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=f"{kept} is incomplete; delete it"):
        read_tokenizer_files(llama, home)


def test_two_processes_build_the_same_at_once_with_nothing_left_over(
    llama: Path, home: Home
) -> None:
    program = (
        "import sys; from pathlib import Path; from millrace.config.home import Home\n"
        "from millrace.hub.tokenizer_files import read_tokenizer_files\n"
        "read_tokenizer_files(Path(sys.argv[1]), Home(Path(sys.argv[2])))\n"
        "sys.exit(bool({'transformers', 'torch'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", program, str(llama), str(home.root)]
    both = [subprocess.Popen(command) for _ in range(2)]

    assert [process.wait(timeout=120) for process in both] == [0, 0]
    (kept,) = _kept(home)
    assert {path.name for path in kept.iterdir()} >= {"tokenizer.json", "tokenizer_config.json"}


def test_reason_of_the_process_reaches_the_message(llama: Path, home: Home) -> None:
    (llama / "tokenizer.json").unlink()
    (llama / "tokenizer.model").write_bytes(b"\x0a\x0b")
    with pytest.raises(ConfigError, match=f"{llama}: transformers cannot load .*sentencepiece"):
        read_tokenizer_files(llama, home)
    assert _kept(home) == []


def test_process_that_takes_too_long_is_ended(
    llama: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_build, "BUILD_TIMEOUT_S", 0.01)
    with pytest.raises(ConfigError, match="cannot load its tokenizer: it took over 0.01 s"):
        read_tokenizer_files(llama, home)


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", "vocab.txt", "tokenizer.json"])
def test_folder_with_any_vocabulary_is_a_model(tmp_path: Path, name: str) -> None:
    for needed in ("config.json", "model.safetensors"):
        (tmp_path / needed).touch()
    with pytest.raises(UnsupportedModel, match=r"no tokenizer\.json"):
        check_is_model(tmp_path)
    (tmp_path / name).touch()
    check_is_model(tmp_path)


def test_builds_are_named_after_the_pinned_transformers() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = project["optional-dependencies"]["engine"]
    assert f"transformers=={tokenizer_build.TRANSFORMERS_VERSION}" in pins


def test_overriding_model_types_are_those_of_transformers() -> None:
    from transformers.models.auto import tokenization_auto as auto

    plain = {*tokenizer_files.PLAIN_CLASSES, "PythonBackend", "MistralCommonBackend", None}
    overriding = {
        name
        for name in auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS
        if auto.TOKENIZER_MAPPING_NAMES.get(name) not in plain
    }
    assert overriding == tokenizer_files.OVERRIDING_MODEL_TYPES


def test_every_vocabulary_file_of_transformers_is_a_source(tmp_path: Path) -> None:
    from transformers.models.auto import tokenization_auto as auto

    names = set()
    for name in filter(None, set(auto.TOKENIZER_MAPPING_NAMES.values())):
        try:
            made = auto.tokenizer_class_from_name(name)
            names |= set(getattr(made, "vocab_files_names", {}).values())
        except ImportError as error:
            assert re.search("SentencePiece|sacremoses|rjieba|not found", str(error))
    names -= {"tokenizer_config.json"}
    assert len(names) > 10
    for name in (*names, "model.safetensors.index.json", "model.safetensors"):
        (tmp_path / name).touch()
    assert {path.name for path in tokenizer_build._sources(tmp_path)} == names
