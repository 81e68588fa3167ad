"""Damaged, cut and odd GGUF files: refused in one line, or imported as a model that runs."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.hub.gguf_document import (
    BOOL,
    F32,
    F64,
    I32,
    LIST,
    TEXT,
    U32,
    Document,
    Value,
    tiny_document,
)
from tests.unit.hub.gguf_taking import Take, taking

SEED = int(os.environ.get("MILLRACE_TEST_SEED", "1"))
EXAMPLES = int(os.environ.get("MILLRACE_TEST_EXAMPLES", "120"))


@pytest.fixture
def take(tmp_path: Path) -> Take:
    return taking(tmp_path)


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
