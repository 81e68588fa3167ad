"""Vocabularies of GGUF files: what may be written, what ends a text, what does not fit together."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from millrace.config.home import Home
from millrace.core.errors import UnsupportedModel
from millrace.engine.end_tokens import KNOWN_END_TOKENS
from millrace.engine.generation_config import read_generation_config
from millrace.hub.gguf_import import convert_gguf
from millrace.tokenizer.codec import load_codec
from tests.unit.hub.gguf_document import (
    BOOL,
    CONTROL_KIND,
    F32,
    I32,
    LIST,
    NORMAL_KIND,
    TEXT,
    U32,
    USER_KIND,
    Document,
    tiny_document,
    tokens_of,
)

UNUSED_KIND = 5
FIRST_EXTRA = len(tokens_of())

Convert = Callable[[Document], Path]


@pytest.fixture
def convert(tmp_path: Path) -> Convert:
    def run(document: Document) -> Path:
        folder = tmp_path / "imported"
        folder.mkdir()
        convert_gguf(document.write(tmp_path / "model.gguf"), folder)
        return folder

    return run


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text("utf-8"))


@pytest.mark.parametrize("kind", [CONTROL_KIND, NORMAL_KIND, USER_KIND, UNUSED_KIND])
@pytest.mark.parametrize(
    ("prefix", "suffix", "middle"),
    [
        ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
        ("<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>"),
        ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
        ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
        ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
        ("<PRE>", "<SUF>", "<MID>"),
        ("▁<PRE>", "▁<SUF>", "▁<MID>"),
        ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
        ("<|prefix|>", "<|suffix|>", "<|middle|>"),
        ("[PREFIX]", "[SUFFIX]", "[MIDDLE]"),
    ],
)
def test_a_gap_can_be_written_whatever_the_converter_calls_its_tokens(
    convert: Convert, tmp_path: Path, prefix: str, suffix: str, middle: str, kind: int
) -> None:
    document = tiny_document(extra=[(token, kind) for token in (prefix, suffix, middle)])

    codec = load_codec(convert(document), Home(tmp_path / "home"))

    ids = codec.encode_text(f"{prefix}a{suffix}b{middle}")
    assert [ids[0], ids[2], ids[4]] == [FIRST_EXTRA, FIRST_EXTRA + 1, FIRST_EXTRA + 2]
    assert len(ids) == 5


@pytest.mark.parametrize(
    "keys", [("fim_pre", "fim_suf", "fim_mid"), ("prefix", "suffix", "middle")]
)
def test_a_gap_can_be_written_in_tokens_that_the_keys_name(
    convert: Convert, tmp_path: Path, keys: tuple[str, ...]
) -> None:
    document = tiny_document(extra=[(f"<|own_{key}|>", CONTROL_KIND) for key in keys])
    for number, key in enumerate(keys):
        document.keys[f"tokenizer.ggml.{key}_token_id"] = (U32, FIRST_EXTRA + number)

    codec = load_codec(convert(document), Home(tmp_path / "home"))

    ids = codec.encode_text("".join(f"<|own_{key}|>" for key in keys))
    assert ids == [FIRST_EXTRA, FIRST_EXTRA + 1, FIRST_EXTRA + 2]


def test_tokens_of_a_coder_are_special_as_its_maker_has_them(convert: Convert) -> None:
    """Qwen2.5-Coder: its own tokenizer_config.json, and all CONTROL as converted."""
    special = ["<|object_ref_start|>", "<|box_end|>", "<|vision_pad|>", "<|video_pad|>"]
    plain = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"]
    plain += ["<|repo_name|>", "<|file_sep|>"]
    document = tiny_document(
        extra=[
            *((token, CONTROL_KIND) for token in special + plain),
            ("<tool_call>", USER_KIND),
            ("</tool_call>", USER_KIND),
        ]
    )

    added = read(convert(document), "tokenizer.json")["added_tokens"]

    found = {token["content"]: token["special"] for token in added}
    assert found == {
        **dict.fromkeys(("<|endoftext|>", "<|im_start|>", "<|im_end|>", *special), True),
        **dict.fromkeys((*plain, "<tool_call>", "</tool_call>"), False),
    }


def test_only_a_vocabulary_that_fills_gaps_gives_up_its_control_tokens(
    convert: Convert, tmp_path: Path
) -> None:
    names = ["<filename>", "<repo_name>", "<file_sep>", "<fim_prefix>", "<fim_suffix>"]
    document = tiny_document(extra=[(name, CONTROL_KIND) for name in names])

    codec = load_codec(convert(document), Home(tmp_path / "home"))

    assert max(codec.encode_text(f"cp {''.join(names)}")) < FIRST_EXTRA


def test_other_control_tokens_stay_text_beside_a_gap(convert: Convert, tmp_path: Path) -> None:
    names = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|box_end|>"]
    document = tiny_document(extra=[(name, CONTROL_KIND) for name in names])

    codec = load_codec(convert(document), Home(tmp_path / "home"))

    assert not {0, 1, 2, FIRST_EXTRA + 3} & set(codec.encode_text("<|im_end|><|box_end|>"))


@pytest.mark.parametrize("kind", [CONTROL_KIND, NORMAL_KIND, USER_KIND, UNUSED_KIND])
@pytest.mark.parametrize("token", sorted(KNOWN_END_TOKENS - {"<|endoftext|>", "<|im_end|>"}))
def test_a_text_ends_at_every_token_known_for_it(convert: Convert, token: str, kind: int) -> None:
    folder = convert(tiny_document(extra=[(token, kind)]))

    found = read(folder, "generation_config.json")["eos_token_id"]
    assert (found[0], sorted(found)) == (2, [0, 2, FIRST_EXTRA])
    assert set(read_generation_config(folder).eos_token_ids) == {2, 0, FIRST_EXTRA}


@pytest.mark.parametrize("key", ["eot", "eom", "fim_pad", "fim_rep", "fim_sep"])
def test_a_text_ends_where_a_key_says_so(convert: Convert, key: str) -> None:
    document = tiny_document(extra=[("<|own|>", CONTROL_KIND)])
    document.keys[f"tokenizer.ggml.{key}_token_id"] = (U32, FIRST_EXTRA)

    found = read(convert(document), "generation_config.json")["eos_token_id"]

    assert sorted(found) == [0, 2, FIRST_EXTRA]


def test_a_format_whose_messages_go_on_behind_their_end_is_known(convert: Convert) -> None:
    names = ["<|end|>", "<|return|>", "<|call|>"]

    folder = convert(tiny_document(extra=[(name, CONTROL_KIND) for name in names]))

    assert sorted(read(folder, "generation_config.json")["eos_token_id"]) == [
        *(0, 2),
        *(FIRST_EXTRA + 1, FIRST_EXTRA + 2),
    ]


def test_a_model_that_names_one_end_only_has_one(convert: Convert) -> None:
    document = tiny_document()
    tokens = tokens_of()
    tokens[0] = "<|own|>"
    document.keys["tokenizer.ggml.tokens"] = (LIST, (TEXT, tokens))

    assert read(convert(document), "generation_config.json")["eos_token_id"] == 2


def test_how_tokens_are_drawn_comes_from_the_file(convert: Convert) -> None:
    document = tiny_document()
    document.keys |= {
        "general.sampling.temp": (F32, 0.6),
        "general.sampling.top_p": (F32, 0.95),
        "general.sampling.top_k": (I32, 20),
        "general.sampling.penalty_repeat": (F32, 1.05),
    }

    defaults = read_generation_config(convert(document))

    assert (defaults.temperature, defaults.top_p, defaults.top_k) == (0.6, 0.95, 20)
    assert defaults.repetition_penalty == 1.05


@pytest.mark.parametrize(
    ("bos", "eos", "expected"),
    [
        (False, False, [259]),
        (True, False, [1, 259]),
        (False, True, [259, 2]),
        (True, True, [1, 259, 2]),
    ],
)
def test_bos_and_eos_are_added_where_the_file_says_so(
    convert: Convert, bos: bool, eos: bool, expected: list[int]
) -> None:
    document = tiny_document()
    document.keys["tokenizer.ggml.add_bos_token"] = (BOOL, bos)
    document.keys["tokenizer.ggml.add_eos_token"] = (BOOL, eos)

    tokenizer = Tokenizer.from_file(str(convert(document) / "tokenizer.json"))

    assert tokenizer.encode("he").ids == expected


def test_padding_with_a_piece_of_text_leaves_that_piece_text(
    convert: Convert, tmp_path: Path
) -> None:
    document = tiny_document("qwen2", pre="qwen2")
    document.keys["tokenizer.ggml.padding_token_id"] = (U32, 259)

    codec = load_codec(convert(document), Home(tmp_path / "home"))

    assert codec.encode_text("he") == [259]


def test_a_chat_template_that_is_broken_refuses_conversations_only(
    convert: Convert, tmp_path: Path
) -> None:
    document = tiny_document()
    document.keys["tokenizer.chat_template"] = (TEXT, "{% for message in messages %}{{")

    codec = load_codec(convert(document), Home(tmp_path / "home"))

    assert not codec.has_chat_template
    assert codec.encode_text("he") == [259]


def _change_tokens(document: Document, change: Callable[[list[str]], None]) -> None:
    _, (kind, tokens) = document.keys["tokenizer.ggml.tokens"]
    change(tokens)
    document.keys["tokenizer.ggml.tokens"] = (LIST, (kind, tokens))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (
            "token_type",
            (LIST, (I32, [1] * 260)),
            "'tokenizer.ggml.token_type' has 260 items for 261",
        ),
        (
            "token_type",
            (LIST, (I32, [1] * 262)),
            "'tokenizer.ggml.token_type' has 262 items for 261",
        ),
        ("token_type", (LIST, (I32, [9] * 261)), "'tokenizer.ggml.token_type' has 9 at 0"),
        ("scores", (LIST, (F32, [0.0] * 3)), "'tokenizer.ggml.scores' has 3 items for 261"),
        ("merges", (LIST, (TEXT, ["h e", "h"])), "'tokenizer.ggml.merges' has 'h' at 1"),
        ("merges", (LIST, (TEXT, ["h q"])), "'tokenizer.ggml.merges' has 'h q' at 0"),
        ("merges", (LIST, (TEXT, ["h "])), "'tokenizer.ggml.merges' has 'h ' at 0"),
        ("tokens", (LIST, (TEXT, [])), "'tokenizer.ggml.tokens' is empty"),
        ("tokens", (LIST, (I32, [1, 2])), "'tokenizer.ggml.tokens' is a list of 2, no list of"),
        (
            "eos_token_id",
            (U32, 261),
            "'tokenizer.ggml.eos_token_id' is 261, no whole number from 0 to",
        ),
        ("bos_token_id", (I32, -1), "'tokenizer.ggml.bos_token_id' is -1, no whole number"),
        ("fim_pre_token_id", (TEXT, "x"), "'tokenizer.ggml.fim_pre_token_id' is 'x', no whole"),
        ("add_bos_token", (U32, 1), "'tokenizer.ggml.add_bos_token' is 1, neither true nor false"),
    ],
)
def test_vocabulary_that_does_not_fit_together_is_refused(
    convert: Convert, key: str, value: Any, reason: str
) -> None:
    document = tiny_document()
    document.keys[f"tokenizer.ggml.{key}"] = value

    with pytest.raises(UnsupportedModel) as caught:
        convert(document)

    assert reason in caught.value.message
    assert "model.gguf: " in caught.value.message


@pytest.mark.parametrize(("first", "second"), [(10, 20), (0, 260), (258, 259)])
def test_a_token_that_stands_there_twice_is_refused_with_both_ids(
    convert: Convert, first: int, second: int
) -> None:
    document = tiny_document()
    _change_tokens(document, lambda tokens: tokens.__setitem__(second, tokens[first]))

    with pytest.raises(UnsupportedModel, match=f"twice, as {first} and {second}"):
        convert(document)


@pytest.mark.parametrize("name", ["bos", "eos"])
def test_a_token_that_is_to_be_added_must_be_named(convert: Convert, name: str) -> None:
    document = tiny_document()
    document.keys[f"tokenizer.ggml.add_{name}_token"] = (BOOL, True)
    del document.keys[f"tokenizer.ggml.{name}_token_id"]

    with pytest.raises(UnsupportedModel, match=f"'tokenizer.ggml.{name}_token_id' is missing"):
        convert(document)


@pytest.mark.parametrize("pre", ["llama-bpe", "gpt-2", "smollm"])
def test_pre_tokenizer_that_transformers_would_replace_is_refused(
    convert: Convert, pre: str
) -> None:
    with pytest.raises(UnsupportedModel, match=f"'tokenizer.ggml.pre' is '{pre}', which a qwen2"):
        convert(tiny_document("qwen2", pre=pre))
