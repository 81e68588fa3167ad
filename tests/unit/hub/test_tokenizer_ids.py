"""Token ids beyond the model: refused if a prompt can have them, else left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from millrace.config.home import Home
from millrace.core.errors import ConfigError
from millrace.hub.tokenizer_files import read_tokenizer_files
from millrace.hub.tokenizer_ids import check_ids, model_vocab_size
from millrace.testing.tokenizers import change_tokenizer, write_byte_level

SIZE = 8


def _token(content: str, *, special: bool = False) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": 0, "content": content, "special": special, **flags}


def _bpe(vocab: dict[str, int], merges: Any = (), **parts: Any) -> dict[str, Any]:
    return {"type": "BPE", "vocab": vocab, "merges": list(merges), **parts}


def _description(model: dict[str, Any], *added: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return {"model": model, "added_tokens": list(added), **parts}


def _check(description: dict[str, Any], template: str = "", **named: str) -> None:
    check_ids(description, SIZE, named, template)


LETTERS = {letter: number for number, letter in enumerate("abcdef")}
FULL = {letter: number for number, letter in enumerate("abcdefgh")}
WRITES = {"single": [{"SpecialToken": {"id": "<pad>"}}]}


@pytest.mark.parametrize(
    ("description", "template", "named"),
    [
        (_description(_bpe(LETTERS | {"ab": 7}, [["a", "b"]])), "", {}),
        # Padding that somebody added, and nobody writes.
        (_description(_bpe(FULL), _token("<pad>", special=True)), "", {"pad_token": "<pad>"}),
        (_description(_bpe(FULL), _token("<pad>", special=True)), "<p>", {}),
        # No merge builds it.
        (_description(_bpe(LETTERS | {"abc": 8}, [["a", "b"]])), "", {}),
        (_description(_bpe(LETTERS | {"abc": 8}, ["a b"])), "", {}),
        (_description(_bpe(LETTERS | {"<0x41>": 8})), "", {}),
    ],
)
def test_ids_that_no_prompt_can_have_are_left_alone(
    description: dict[str, Any], template: str, named: dict[str, str]
) -> None:
    _check(description, template, **named)


@pytest.mark.parametrize(
    ("description", "template", "named", "token"),
    [
        (_description(_bpe(LETTERS | {"Z": 50_000_000})), "", {}, "'Z' the id 50000000"),
        (_description(_bpe(LETTERS | {"ab": 8}, [["a", "b"]])), "", {}, "'ab' the id 8"),
        (_description(_bpe(LETTERS | {"abc": 8}, ignore_merges=True)), "", {}, "'abc' the id 8"),
        (_description(_bpe(LETTERS | {"<0x41>": 8}, byte_fallback=True)), "", {}, "'<0x41>'"),
        (_description(_bpe(LETTERS | {"<unk>": 8}, unk_token="<unk>")), "", {}, "'<unk>'"),
        (_description(_bpe(LETTERS | {"a</w>": 8}, end_of_word_suffix="</w>")), "", {}, "'a</w>'"),
        (
            _description(_bpe(LETTERS | {"##a": 8}, continuing_subword_prefix="##")),
            "",
            {},
            "'##a' the id 8",
        ),
        (
            _description(_bpe(LETTERS | {"ab": 8}, [["a", "##b"]], continuing_subword_prefix="##")),
            "",
            {},
            "'ab' the id 8",
        ),
        (_description(_bpe(FULL), _token("<tool>")), "", {}, "'<tool>' the id 8"),
        (_description(_bpe(FULL), _token("<a>", special=True)), "<a>", {}, "'<a>' the id 8"),
        (
            _description(_bpe(FULL), _token("<pad>", special=True)),
            "{{ pad_token }}",
            {"pad_token": "<pad>"},
            "'<pad>' the id 8",
        ),
        (
            _description(_bpe(FULL), _token("<pad>", special=True), post_processor=WRITES),
            "",
            {},
            "'<pad>' the id 8",
        ),
        (
            _description({"type": "Unigram", "vocab": [[str(n), -1.0] for n in range(9)]}),
            "",
            {},
            "'8' the id 8",
        ),
        (_description({"type": "WordLevel", "vocab": {"word": 9}}), "", {}, "'word' the id 9"),
    ],
)
def test_ids_that_a_prompt_can_have_are_refused(
    description: dict[str, Any], template: str, named: dict[str, str], token: str
) -> None:
    with pytest.raises(ConfigError, match=f"{token}.*the model has the ids 0 to 7"):
        _check(description, template, **named)


def test_model_whose_size_is_not_known_takes_any_id() -> None:
    check_ids(_description(_bpe({"Z": 50_000_000})), None, {}, "")


def test_two_tokens_with_one_id_are_refused() -> None:
    with pytest.raises(ConfigError, match="'c' and 'x' share the id 2"):
        _check(_description(_bpe(LETTERS | {"x": 2})))


def test_merge_that_would_end_the_process_is_refused() -> None:
    model = _bpe({"a": 0, "é": 1, "aé": 2}, [["a", "é"]], continuing_subword_prefix="#")
    with pytest.raises(ConfigError, match="merge with 'é' lacks the prefix '#'"):
        _check(_description(model))


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({"vocab_size": 100}, 100),
        ({"text_config": {"vocab_size": 100}}, 100),
        ({"vocab_size": None, "text_config": {"vocab_size": 7}}, 7),
        ({}, None),
        ({"vocab_size": "many", "text_config": []}, None),
    ],
)
def test_size_of_the_model_is_found(config: dict[str, Any], size: int | None) -> None:
    assert model_vocab_size(config) == size


@given(data=st.data())
def test_added_tokens_count_with_the_ids_that_the_library_gives(data: st.DataObject) -> None:
    """The highest id is refused, and one more is not, whatever ids the file claims."""
    letters = "abcdefg"[: data.draw(st.integers(1, 7))]
    numbers = st.lists(st.integers(0, 19), min_size=7, max_size=7, unique=True)
    vocab = dict(zip(letters, data.draw(numbers), strict=False))
    names = data.draw(st.lists(st.sampled_from("efgxyz"), max_size=6))
    added = [_token(name) | {"id": data.draw(st.integers(0, 59))} for name in names]
    description = _description(_bpe(vocab), *added)
    library = Tokenizer.from_str(json.dumps({"version": "1.0", **description}))
    highest = max(library.get_vocab(with_added_tokens=True).values())

    check_ids(description, highest + 1, {}, "")
    with pytest.raises(ConfigError, match=f"the id {highest},"):
        check_ids(description, highest, {}, "")


@given(data=st.data())
@settings(max_examples=200)
def test_what_is_let_pass_never_comes_out_of_a_text(data: st.DataObject) -> None:
    tokens = list("abc")
    merges = []
    for _ in range(data.draw(st.integers(0, 6))):
        left, right = (data.draw(st.sampled_from(tokens)) for _ in range(2))
        tokens.append(left + right)
        merges.append([left, right])
    tokens += data.draw(st.lists(st.text("abc", min_size=1, max_size=4), max_size=4))
    tokens = data.draw(st.permutations(list(dict.fromkeys(tokens))))
    vocab = {token: number for number, token in enumerate(tokens)}
    ignore_merges = data.draw(st.booleans())
    description = _description(_bpe(vocab, merges, ignore_merges=ignore_merges))
    library = Tokenizer.from_str(json.dumps({"version": "1.0", **description}))
    text = data.draw(st.text("abc", min_size=1, max_size=30))

    highest = max(library.encode(text).ids)

    with pytest.raises(ConfigError):
        check_ids(description, highest, {}, "")


def test_folder_is_refused_with_token_and_id(tmp_path: Path) -> None:
    write_byte_level(tmp_path)
    config = tmp_path / "config.json"
    config.write_text('{"vocab_size": 474}')
    read_tokenizer_files(tmp_path, Home(tmp_path / "home"))

    config.write_text('{"text_config": {"vocab_size": 473}}')
    with pytest.raises(ConfigError, match=f"{tmp_path}: the tokenizer gives '<think>' the id 473"):
        read_tokenizer_files(tmp_path, Home(tmp_path / "home"))

    description = json.loads((tmp_path / "tokenizer.json").read_text())
    description["model"]["vocab"]["Z"] = 50_000_000
    change_tokenizer(tmp_path, model=description["model"])
    config.write_text('{"vocab_size": 640}')
    with pytest.raises(ConfigError, match="'Z' the id 50000000"):
        read_tokenizer_files(tmp_path, Home(tmp_path / "home"))
