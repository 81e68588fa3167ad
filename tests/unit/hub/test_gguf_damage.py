"""Damaged, incomplete and odd GGUF files: refused in one line, or imported as a model that runs."""

from __future__ import annotations

import io
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from millrace.config.home import Home
from millrace.core.errors import MillraceError, UnsupportedModel
from millrace.engine.config import EngineConfig
from millrace.engine.engine import create_engine
from millrace.engine.local import LocalGenerator, LocalRequest
from millrace.engine.models.checkpoint_check import check_checkpoint
from millrace.hub import gguf_import
from millrace.hub.add import add_model
from millrace.hub.gguf_import import convert_gguf
from millrace.tokenizer.codec import load_codec
from tests.unit.hub.gguf_document import (
    BOOL,
    F32,
    F64,
    HIDDEN,
    I32,
    LIST,
    TEXT,
    U32,
    Document,
    Tensor,
    Value,
    tiny_document,
)

SEED = int(os.environ.get("MILLRACE_TEST_SEED", "1"))
EXAMPLES = int(os.environ.get("MILLRACE_TEST_EXAMPLES", "120"))
Take = Callable[[bytes | Document], str]


def run(folder: Path, home: Home) -> None:
    """A prompt through the tokenizer and an engine, as a tokenizer and a worker would."""
    assert check_checkpoint(folder) == "native"
    ids = load_codec(folder, home).encode_text("h")
    engine = create_engine(
        EngineConfig(
            model_path=folder,
            name=folder.name,
            dtype="float32",
            backend="torch",
            num_blocks=2,
            num_threads=1,
        )
    )
    if len(ids) < engine.info.max_model_len:
        LocalGenerator(engine).generate([LocalRequest(ids, 1)])


@pytest.fixture
def take(tmp_path: Path) -> Take:
    """Imports a file. Returns why it was refused, "" where it was taken and its model ran."""
    home = Home(tmp_path / "home")
    path = tmp_path / "strange.gguf"
    folder = tmp_path / "taken"

    def outcome(content: bytes | Document) -> str:
        path.write_bytes(content if isinstance(content, bytes) else content.content())
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            convert_gguf(path, folder)
        except MillraceError as error:
            assert isinstance(error, UnsupportedModel)
            assert "\n" not in error.message
            assert error.message.startswith(f"{path}: ")
            assert len(error.message) < 500
            # Only weights are looked at while they are written.
            assert not list(folder.iterdir()) or "not finite" in error.message
            return error.message
        run(folder, home)
        return ""

    return outcome


def document_of(architecture: str) -> Document:
    """With every key that changes anything, in its harmless value."""
    document = tiny_document(
        architecture, pre="smollm" if architecture == "llama" else "qwen2", layers=1, tied=False
    )
    document.keys |= {
        f"{architecture}.expert_count": (U32, 0),
        f"{architecture}.pooling_type": (U32, 0),
        f"{architecture}.attention.causal": (BOOL, True),
        f"{architecture}.attention.scale": (F32, 0.0),
        f"{architecture}.logit_scale": (F32, 1.0),
        f"{architecture}.rope.scaling.type": (TEXT, "none"),
        f"{architecture}.rope.scaling.factor": (F32, 1.0),
        "general.sampling.temp": (F32, 0.5),
        "general.sampling.top_k": (I32, 40),
        "tokenizer.ggml.add_eos_token": (BOOL, False),
        "tokenizer.ggml.eot_token_id": (U32, 2),
        "tokenizer.ggml.fim_pad_token_id": (U32, 0),
        "split.count": (2, 1),
        "split.no": (2, 0),
        "split.tensors.count": (I32, len(document.tensors)),
    }
    return document


OTHER_TYPES: tuple[Value, ...] = (
    (TEXT, "x"),
    (TEXT, ""),
    (U32, 1),
    (0, 1),
    (F32, 0.5),
    (F64, 1.0),
    (BOOL, True),
    (LIST, (I32, [1, 2])),
    (LIST, (TEXT, ["a", "b"])),
    (LIST, (F32, [])),
)
EXTREMES: dict[str, tuple[Value, ...]] = {
    "whole": (
        *((U32, value) for value in (0, 1, 3, 17, 2**31 - 1, 2**31, 2**32 - 1)),
        *((I32, value) for value in (-1, -(2**31))),
        *((10, value) for value in (2**32, 2**63, 2**64 - 1)),
        (11, -(2**63)),
    ),
    "fraction": (
        *((F32, value) for value in (0.0, -0.0, -1.0, 1.0, 1e-45, 1e-38, 3.4e38)),
        *((F32, value) for value in (float("nan"), float("inf"), -float("inf"))),
        *((F64, value) for value in (1e-300, 1e300, 1e-6, 500000.0)),
    ),
    "text": (
        *((TEXT, value) for value in ("", "\0", "a\nb", "x" * 10_000, "{{", "model", b"\xff\xfe")),
    ),
    "list": tuple(
        (LIST, (kind, items))
        for kind, items in (
            (TEXT, []),
            (TEXT, ["a", "a"]),
            (TEXT, [b"\xff"]),
            (TEXT, ["h e"] * 300),
            (I32, [-1] * 261),
            (I32, [2**31 - 1] * 261),
            (F32, [float("nan")] * 261),
            (F32, [0.5] * 262),
        )
    ),
}


def extremes_of(kind: int) -> tuple[Value, ...]:
    """Values of a key's own kind that it may not be ready for."""
    names = {TEXT: "text", LIST: "list", F32: "fraction", F64: "fraction"}
    return EXTREMES[names.get(kind, "whole")]


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_file_with_every_key_is_taken(take: Take, architecture: str) -> None:
    assert take(document_of(architecture)) == ""


@pytest.mark.parametrize("key", document_of("llama").keys)
def test_key_that_is_absent_or_of_another_type_is_named_or_not_needed(take: Take, key: str) -> None:
    document = document_of("llama")
    own_kind = document.keys.pop(key)[0]
    refusals = [take(document)]
    for value in OTHER_TYPES:
        if value[0] != own_kind:
            document.keys[key] = value
            refusals.append(take(document))
    # What follows from a value may be told by the tensor that then has another shape.
    assert all(key in refusal or "GGUF tensor" in refusal for refusal in refusals if refusal)


@pytest.mark.parametrize("key", document_of("llama").keys)
def test_key_that_is_out_of_range_is_refused_or_harmless(take: Take, key: str) -> None:
    document = document_of("llama")
    own_kind = document.keys[key][0]
    for value in extremes_of(own_kind):
        document.keys[key] = value
        refusal = take(document)
        assert not refusal or key in refusal or "GGUF tensor" in refusal


def test_damaged_headers_are_refused_or_harmless(take: Take) -> None:
    """Bytes changed, put in or taken out, anywhere in a header."""
    print(f"MILLRACE_TEST_SEED={SEED}")
    rng = random.Random(SEED)
    documents = [document_of(name) for name in ("llama", "qwen3")]
    for number in range(EXAMPLES):
        document = documents[number % len(documents)]
        content = document.content()
        take(damaged(content, len(document.header()), rng))


def test_keys_that_are_strange_together_are_refused_or_harmless(take: Take) -> None:
    print(f"MILLRACE_TEST_SEED={SEED}")
    rng = random.Random(SEED)
    for _ in range(EXAMPLES):
        architecture = rng.choice(("llama", "qwen3"))
        document = document_of(architecture)
        for key in rng.sample(sorted(document.keys), rng.randint(2, 4)):
            values = [*OTHER_TYPES, *extremes_of(document.keys[key][0])]
            document.keys[key] = rng.choice(values)
            if rng.random() < 0.2:
                del document.keys[key]
        take(document)


def damaged(content: bytes, header_bytes: int, rng: random.Random) -> bytes:
    """A file with a few faults in its header, small numbers and lengths as likely as others."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(header_bytes)
        kind = rng.randrange(4)
        if kind == 0:
            changed[place] = rng.choice((0, 1, 2, 8, 9, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 1:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del changed[place : place + rng.randint(1, 16)]
        else:
            changed[place:place] = rng.randbytes(rng.randint(1, 16))
    return bytes(changed)


def test_file_that_is_cut_anywhere_is_refused(take: Take) -> None:
    print(f"MILLRACE_TEST_SEED={SEED}")
    rng = random.Random(SEED)
    document = document_of("llama")
    content, header = document.content(), len(document.header())
    # What fills the file up behind the last tensor is not missed.
    needed = len(content) - (-len(document.tensors[-1].data) % document.alignment)
    places = [*range(26), *(rng.randrange(26, header) for _ in range(EXAMPLES // 2))]
    places += [rng.randrange(header, needed) for _ in range(EXAMPLES // 4)]
    for place in [*places, header, needed - 1]:
        refusal = take(content[:place])
        assert "cut off" in refusal or "bytes are too few" in refusal, place


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "0 bytes are too few"),
        (b"GGUF123456", "10 bytes are too few"),
        (b"GGML" + bytes(60), "not a GGUF file: it begins with b'GGML'"),
        (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "begins with b'<!DO'"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 397808192\n",
            "a git-lfs pointer of 74 bytes",
        ),
        (b"version https://git-lfs", "a git-lfs pointer"),
        (document_of("llama").content().replace(b"GGUF\3\0\0\0", b"GGUF\1\0\0\0"), "version 1;"),
        (document_of("llama").content().replace(b"GGUF\3\0\0\0", b"GGUF\4\0\0\0"), "version 4;"),
        (
            document_of("llama").content().replace(b"GGUF\3\0\0\0", b"GGUF\0\0\0\3"),
            "a big-endian GGUF file",
        ),
    ],
)
def test_file_of_another_format_is_refused_as_what_it_is(
    take: Take, content: bytes, reason: str
) -> None:
    assert reason in take(content)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [8, 32, 64])
def test_both_versions_and_other_alignments_are_read(
    take: Take, version: int, alignment: int
) -> None:
    document = tiny_document(layers=1)
    document.version, document.alignment = version, alignment
    document.keys["general.alignment"] = (U32, alignment)

    assert take(document) == ""


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_model_that_lacks_any_tensor_is_refused(take: Take, architecture: str) -> None:
    document = tiny_document(architecture, pre="qwen2", tied=False)
    tensors = document.tensors
    for index, tensor in enumerate(tensors):
        if tensor.name == "output.weight":
            # Without it the head is tied, in every reader.
            continue
        document.tensors = tensors[:index] + tensors[index + 1 :]
        assert f"GGUF tensor '{tensor.name}' is missing" in take(document)


def test_missing_tensors_are_counted(take: Take) -> None:
    document = tiny_document()
    document.tensors = [t for t in document.tensors if not t.name.startswith("blk.1.")]

    assert "GGUF tensor 'blk.1.attn_q.weight' and 8 more are missing" in take(document)


@pytest.mark.parametrize(
    "name",
    [
        "blk.2.attn_norm.weight",
        "blk.01.attn_norm.weight",
        "blk.0.attn_rot_embd",
        "blk.0.attn_q_norm.weight",
        "blk.0.attn_output.bias",
        "blk.0.ffn_gate_inp.weight",
        "cls.output.weight",
        "token_embd.weight.lora_a",
        "",
    ],
)
def test_tensor_that_the_model_does_not_have_is_refused(take: Take, name: str) -> None:
    document = tiny_document()
    document.tensors.append(Tensor(name, (HIDDEN,), bytes(4 * HIDDEN)))

    assert f"GGUF tensor '{name}' has no counterpart" in take(document)


def test_tensors_of_another_shape_are_refused(take: Take) -> None:
    document = tiny_document(tied=False, bias=True, layers=1)
    for tensor in document.tensors:
        shape = tensor.shape
        others = {(*shape[:-1], shape[-1] + 32), (shape[0] + 1, *shape[1:]), (1, *shape)}
        others |= {shape[::-1], shape[:1], (*shape, 1), (0, *shape[1:])} - {shape}
        for tensor.shape in sorted(others):
            tensor.data, was = bytes(4 * int(np.prod(tensor.shape))), tensor.data
            assert f"GGUF tensor '{tensor.name}' has the shape {list(tensor.shape)}" in take(
                document
            )
            tensor.data = was
        tensor.shape = shape


@pytest.mark.parametrize("rows", [200, 260, 262, 640])
def test_vocabulary_of_another_length_than_the_embedding_is_refused(take: Take, rows: int) -> None:
    document = tiny_document()
    embedding = document.tensors[0]
    embedding.shape, embedding.data = (rows, HIDDEN), bytes(4 * rows * HIDDEN)

    refusal = take(document)

    assert f"'token_embd.weight' has the shape [{rows}, 64]; its keys and vocabulary say" in refusal


def test_name_that_stands_there_twice_is_refused(take: Take) -> None:
    document = tiny_document()
    document.tensors.append(document.tensors[3])
    assert f"GGUF tensor '{document.tensors[3].name}' stands in it twice" in take(document)

    document = tiny_document()
    document.more_keys = [("llama.block_count", (U32, 2))]
    assert "GGUF key 'llama.block_count' stands in it twice" in take(document)


@pytest.mark.parametrize(
    ("type_code", "reason"),
    [
        (4, "has type 4, which is unknown"),
        (99, "has type 99, which is unknown"),
        (2**32 - 1, "which is unknown"),
        (9, "has type Q8_1, which cannot be dequantised"),
        (24, "has type I8, which cannot be dequantised"),
        (28, "has type F64, which cannot be dequantised"),
        (12, "has rows of 64, no multiple of 256, the blocks of Q4_K"),
    ],
)
def test_type_that_cannot_be_read_is_refused_before_anything_is_written(
    take: Take, type_code: int, reason: str
) -> None:
    document = tiny_document(layers=1)
    tensor = document.tensors[-1]
    tensor.shape, tensor.type_code, tensor.data = (HIDDEN, 96), type_code, bytes(8 * HIDDEN * 96)
    if type_code == 12:
        tensor = document.tensors[0]
        tensor.type_code = type_code

    refusal = take(document)

    assert reason in refusal
    assert repr(tensor.name) in refusal


@pytest.mark.parametrize("offset", [0, 32, 2**40, 2**64 - 32])
def test_tensor_that_does_not_lie_behind_the_one_before_is_refused(take: Take, offset: int) -> None:
    document = tiny_document()
    document.tensors[5].offset = offset

    assert f"GGUF tensor '{document.tensors[5].name}' begins at {offset}" in take(document)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3.4e38])
@pytest.mark.parametrize("index", [0, 1, 5])
def test_numbers_that_are_not_finite_are_refused(take: Take, index: int, value: float) -> None:
    document = tiny_document()
    tensor = document.tensors[index]
    tensor.data = tensor.data[:-4] + struct.pack("<f", value)

    assert f"GGUF tensor '{tensor.name}' has numbers that are not finite" in take(document)


def variants() -> Iterator[tuple[str, Value]]:
    """Keys with which a model computes something else."""
    yield "general.type", (TEXT, "adapter")
    for name, value in (
        ("pooling_type", (U32, 3)),
        ("attention.causal", (BOOL, False)),
        ("attention.scale", (F32, 0.5)),
        ("logit_scale", (F32, 0.25)),
        ("residual_scale", (F32, 0.22)),
        ("embedding_scale", (F32, 12.0)),
        ("attn_logit_softcapping", (F32, 50.0)),
        ("final_logit_softcapping", (F32, 30.0)),
        ("attention.clamp_kqv", (F32, 8.0)),
        ("attention.max_alibi_bias", (F32, 8.0)),
        ("attention.value_length", (U32, 32)),
        ("rope.dimension_count", (U32, 8)),
        ("rope.scaling.type", (TEXT, "yarn")),
        ("rope.scaling.factor", (F32, 4.0)),
        ("rope.scale_linear", (F32, 2.0)),
        ("expert_count", (U32, 8)),
    ):
        yield f"llama.{name}", value


@pytest.mark.parametrize(("key", "value"), tuple(variants()))
def test_variant_of_an_architecture_is_refused_by_its_key(
    take: Take, key: str, value: Value
) -> None:
    document = tiny_document()
    document.keys[key] = value

    assert key in take(document)


@pytest.mark.parametrize("license", ["a\nb", "\x1b[2J", "\u202egpl", "x" * 201])
def test_licence_that_a_list_could_not_show_is_refused(take: Take, license: str) -> None:
    document = tiny_document()
    document.keys["general.license"] = (TEXT, license)

    assert "'general.license'" in take(document)


def test_long_lists_are_bounded(take: Take) -> None:
    document = tiny_document()
    raw = document.content()
    for key, kind in (("tokenizer.ggml.tokens", TEXT), ("tokenizer.ggml.scores", F32)):
        at = raw.index(key.encode()) + len(key) + 4
        assert raw[at : at + 4] == struct.pack("<I", kind)
        for count in (2**24 + 1, 2**40, 2**64 - 1):
            changed = raw[: at + 4] + struct.pack("<Q", count) + raw[at + 12 :]
            assert f"GGUF key '{key}' is a list of {count}, over" in take(changed)


@pytest.mark.parametrize("number", range(4))
def test_refused_file_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    document = tiny_document()
    tensor = document.tensors[number * 5]
    content = document.content()
    if number == 0:
        content = content[:-200]
    elif number == 1:
        content = b"GGUF" + bytes(30)
    elif number == 2:
        tensor.name = "another"
        content = document.content()
    else:
        tensor.data = struct.pack("<f", float("nan")) + tensor.data[4:]
        content = document.content()
    path, home = tmp_path / "strange.gguf", Home(tmp_path / "home")
    path.write_bytes(content)

    with pytest.raises(UnsupportedModel, match="strange.gguf: "):
        add_model(path, home)

    assert not [
        file for file in home.models.rglob("*") if file.is_file() and file.suffix != ".lock"
    ]


@pytest.mark.parametrize("place", ["tokenizer_json", "write_weights", "say"])
def test_interrupted_import_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    calls = []

    def interrupt(*args: object, **more: object) -> None:
        calls.append(args)
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_import, place, interrupt)
    path, home = tiny_document().write(tmp_path / "strange.gguf"), Home(tmp_path / "home")

    with pytest.raises(KeyboardInterrupt):
        add_model(path, home, stream=io.StringIO())

    assert calls
    assert not [
        file for file in home.models.rglob("*") if file.is_file() and file.suffix != ".lock"
    ]
