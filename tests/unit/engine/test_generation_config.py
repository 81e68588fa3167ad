"""What ends a text, and how it is drawn, from the files of a model folder."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from millrace.core.errors import MillraceError, UnsupportedModel
from millrace.engine.default_sampling import default_sampling
from millrace.engine.end_tokens import read_end_tokens
from millrace.engine.generation_config import GenerationDefaults, read_generation_config
from millrace.engine.routes import route_of

CONFIG = {"model_type": "llama", "vocab_size": 100}
TOKENS = {"<s>": 1, "<|im_end|>": 2, "<|endoftext|>": 3, "<|eot_id|>": 4, "</s>": 5}


def write(folder: Path, **files: object) -> Path:
    """One JSON file per name; a string is written as it is."""
    files = {"config": CONFIG, **files}
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text, "utf-8")
    return folder


def decoder(*contents: str) -> dict[str, Any]:
    return {
        "added_tokens_decoder": {
            str(TOKENS[content]): {"content": content, "special": True} for content in contents
        }
    }


def tokenizer(*contents: str, **more: Any) -> dict[str, Any]:
    added = [{"id": TOKENS[content], "content": content, "special": True} for content in contents]
    return {"version": "1.0", "added_tokens": added, "model": {"vocab": {}}, **more}


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({}, ()),
        ({"generation_config": {"eos_token_id": 7}}, (7,)),
        ({"config": {**CONFIG, "eos_token_id": 8}}, (8,)),
        ({"config": {**CONFIG, "text_config": {"eos_token_id": [8, 9]}}}, (8, 9)),
        (
            {
                "generation_config": {"eos_token_id": [7, 6]},
                "config": {**CONFIG, "eos_token_id": [6, 8]},
                "tokenizer_config": {"eos_token": "</s>", **decoder("</s>")},
            },
            (7, 6, 8, 5),
        ),
        (
            {
                "generation_config": {"eos_token_id": []},
                "config": {**CONFIG, "eos_token_id": 8},
            },
            (8,),
        ),
        ({"generation_config": {"eos_token_id": None}}, ()),
        ({"generation_config": ""}, ()),
        ({"generation_config": "\n"}, ()),
        ({"tokenizer_config": {"eos_token": "</s>", **decoder("</s>")}}, (5,)),
        ({"tokenizer_config": {"eos_token": {"content": "</s>"}, **decoder("</s>")}}, (5,)),
        ({"tokenizer_config": {"eos_token": "</s>"}, "tokenizer": tokenizer("</s>")}, (5,)),
        ({"special_tokens_map": {"eos_token": "</s>"}, "tokenizer": tokenizer("</s>")}, (5,)),
        # The end is no added token, but one of the vocabulary.
        (
            {
                "tokenizer_config": {"eos_token": "z"},
                "tokenizer": tokenizer(model={"vocab": {"a": 10, "z": 11}}),
            },
            (11,),
        ),
        (
            {
                "tokenizer_config": {"eos_token": "z"},
                "tokenizer": tokenizer(model={"vocab": [["a", -1.0], ["z", -2.0]]}),
            },
            (1,),
        ),
        ({"tokenizer_config": {"eos_token": "z"}, "tokenizer": tokenizer()}, ()),
        ({"tokenizer_config": {"eos_token": "z"}}, ()),
        # By name alone.
        ({"tokenizer_config": decoder("<|im_end|>", "<s>")}, (2,)),
        ({"tokenizer": tokenizer("<|im_end|>", "<|endoftext|>", "<|eot_id|>")}, (3, 4, 2)),
        ({"tokenizer": tokenizer("</s>", "<s>")}, ()),
    ],
)
def test_end_of_text_is_the_union_of_all_that_is_called_so(tmp_path, files, ids):
    assert read_generation_config(write(tmp_path, **files)).eos_token_ids == ids


def test_ordinary_vocabulary_ends_nothing_by_its_name(tmp_path):
    vocabulary = {"vocab": {"<|im_end|>": 50, '"added_tokens":': 51}}
    first = {"model": vocabulary, "added_tokens": [{"id": 4, "content": "<|eot_id|>"}]}

    folder = write(tmp_path, tokenizer=first)

    assert read_generation_config(folder).eos_token_ids == (4,)


def test_messages_within_a_turn_end_no_text_of_harmony(tmp_path):
    names = ["<|return|>", "<|call|>", "<|end|>", "<|endoftext|>"]
    added = [{"id": index, "content": name} for index, name in enumerate(names)]

    harmony = read_end_tokens(write(tmp_path, tokenizer={"added_tokens": added})).known
    other = read_end_tokens(write(tmp_path, tokenizer={"added_tokens": added[2:]})).known

    assert set(harmony) == {0, 1, 3}
    assert set(other) == {2, 3}


def test_known_ends_beyond_the_model_are_left_out(tmp_path):
    added = [{"id": 100, "content": "<|im_end|>"}, {"id": 99, "content": "<|endoftext|>"}]

    folder = write(tmp_path, tokenizer={"added_tokens": added})

    assert read_generation_config(folder).eos_token_ids == (99,)


@pytest.mark.parametrize("value", [True, -1, 100, 99999, 1.5, 2.0, "2", {"a": 1}, [2, None], [[2]]])
@pytest.mark.parametrize("file", ["generation_config", "config"])
def test_what_is_no_token_is_refused_by_file_and_value(tmp_path, file, value):
    content = {**(CONFIG if file == "config" else {}), "eos_token_id": value}
    wrong = value[-1] if isinstance(value, list) else value

    with pytest.raises(UnsupportedModel) as caught:
        read_generation_config(write(tmp_path, **{file: content}))

    assert caught.value.message == (
        f"{tmp_path}/{file}.json: eos_token_id {json.dumps(wrong)} is no token of the model; "
        "ids are whole numbers from 0 to 99"
    )


def test_end_token_that_the_model_does_not_have_is_refused(tmp_path):
    config = {"eos_token": "x", "added_tokens_decoder": {"100": {"content": "x"}}}

    with pytest.raises(UnsupportedModel, match="tokenizer_config.json: eos_token 100 is no"):
        read_generation_config(write(tmp_path, tokenizer_config=config))


@pytest.mark.parametrize("content", ["[]", "null", "{,}", '{"a": 1,}', "[" * 100_000, "\udcff"])
@pytest.mark.parametrize("file", ["config", "generation_config", "tokenizer_config"])
def test_file_that_is_no_object_is_refused_in_a_line(tmp_path, file, content):
    write(tmp_path)
    (tmp_path / f"{file}.json").write_bytes(content.encode("utf-8", "surrogateescape"))

    with pytest.raises(UnsupportedModel, match=f"{file}.json") as caught:
        read_generation_config(tmp_path)
    assert "\n" not in caught.value.message


def test_files_are_utf8_in_every_locale(tmp_path):
    write(tmp_path, config='{"model_type": "llama", "note": "Größe"}')
    code = (
        "import sys; from pathlib import Path;"
        "from millrace.engine.generation_config import read_generation_config;"
        "read_generation_config(Path(sys.argv[1]));"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    environment = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, env=environment)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, {}),
        ({"temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9}),
        ({"do_sample": True, "temperature": 1, "top_k": 50}, {"temperature": 1.0, "top_k": 50}),
        ({"top_k": 20.0, "min_p": 0.05}, {"top_k": 20, "min_p": 0.05}),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"do_sample": None, "temperature": 0.5}, {"temperature": 0.5}),
        (
            {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1},
            {"temperature": 0.0, "repetition_penalty": 1.1},
        ),
    ],
)
def test_sampling_is_as_the_file_says(tmp_path, content, expected):
    told: list[str] = []

    found = read_generation_config(write(tmp_path, generation_config=content), told.append)

    assert found == GenerationDefaults(**expected)
    assert not told


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ({"temperature": 5.0}, "temperature is 5; allowed"),
        ({"temperature": "warm"}, 'temperature is "warm", no number'),
        ({"temperature": True}, "temperature is true, no number"),
        ({"temperature": 10**400}, "temperature is inf"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 1.5}, "top_k is 1.5, no whole number"),
        ({"top_k": 10**400}, "top_k is 1000"),
        ({"min_p": float("nan")}, "min_p is nan"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty is inf"),
    ],
)
def test_sampling_that_no_request_could_ask_for_is_left_out_and_told(tmp_path, content, note):
    told: list[str] = []
    folder = write(tmp_path, generation_config={"temperature": 0.5, "top_p": 0.5, **content})

    found = default_sampling(read_generation_config(folder, told.append), told.append)

    (name,) = content
    assert name not in found.given()
    assert len(found.given()) == len({"temperature", "top_p"} - {name})
    assert [text for text in told if note in text] == told != []


WEIRD: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    2.5,
    1e400,
    "",
    "é",
    [],
    [None],
    [[]],
    {},
    {"a": 1},
    {"content": 1},
]
FIELDS = {
    "config": [
        *("model_type", "architectures", "layer_types", "rope_scaling", "rope_parameters"),
        *("quantization_config", "compression_config", "quantization", "text_config"),
        *("auto_map", "is_encoder_decoder", "eos_token_id", "vocab_size", "hidden_act"),
        *("partial_rotary_factor", "sliding_window", "tie_word_embeddings"),
    ],
    "generation_config": ["eos_token_id", "do_sample", "temperature", "top_k", "top_p"],
    "tokenizer_config": ["eos_token", "added_tokens_decoder", "chat_template"],
    "special_tokens_map": ["eos_token"],
    "tokenizer": ["added_tokens", "model", "version"],
}


def test_no_value_of_any_field_does_more_than_refuse(tmp_path, chance):
    for _ in range(150):
        files = {
            name: {field: chance.choice(WEIRD) for field in fields if chance.random() < 0.4}
            for name, fields in FIELDS.items()
        }
        files["config"] = {**CONFIG, **files["config"]}
        for stale in tmp_path.iterdir():
            stale.unlink()
        try:
            read_generation_config(write(tmp_path, **files))
            # Native, so that no time goes into importing transformers' configurations.
            route_of({**files["config"], "model_type": chance.choice(["llama", "mamba", 3])})
        except MillraceError as error:
            assert "\n" not in error.message, files


def test_random_bytes_in_a_file_do_no_more_than_refuse(tmp_path, chance: random.Random):
    good = write(tmp_path, tokenizer_config=decoder("<|im_end|>"), tokenizer=tokenizer("</s>"))
    for name in ("config", "tokenizer_config", "tokenizer"):
        path = good / f"{name}.json"
        content = path.read_bytes()
        for _ in range(60):
            broken = bytearray(content)
            broken[chance.randrange(len(broken))] = chance.randrange(256)
            path.write_bytes(broken)
            try:
                read_generation_config(good)
            except MillraceError as error:
                assert "\n" not in error.message.replace(str(good), ""), bytes(broken)
        path.write_bytes(content)
