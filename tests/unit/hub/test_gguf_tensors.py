"""Tensors of a GGUF file that are not those of its model: refused by name."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from tests.unit.hub.gguf_document import (
    HIDDEN,
    U32,
    Tensor,
    tiny_document,
)
from tests.unit.hub.gguf_taking import Take, taking


@pytest.fixture
def take(tmp_path: Path) -> Take:
    return taking(tmp_path)


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
