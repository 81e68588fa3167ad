"""Weights of GGUF files: the numbers of the `gguf` package, rounded, in little memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from safetensors.torch import load_file

from millrace.hub import gguf_weights
from millrace.hub.gguf_tensors import GgufTensor
from millrace.hub.gguf_weights import unpermute_rotary, write_weights

UNREADABLE = {"Q8_1", "Q8_K", "Q1_0", "I8", "I16", "I32", "I64", "F64"}
KINDS = [kind for kind in GGMLQuantizationType if kind.name not in UNREADABLE]
HEAD_ROWS = 16


def finite_blocks(kind: GGMLQuantizationType, count: int, rng: np.random.Generator) -> Any:
    """Random blocks of a kind, [count, bytes], without NaN, infinities and what rounds to them."""
    block_bytes = GGML_QUANT_SIZES[kind][1]
    found = np.empty((0, block_bytes), dtype=np.uint8)
    while len(found) < count:
        blocks = rng.integers(0, 256, (count, block_bytes), dtype=np.uint8)
        with np.errstate(all="ignore"):
            values = dequantize(blocks, kind).reshape(count, -1)
            is_fine = (np.abs(values) < 1e38).all(axis=1)
        found = np.concatenate([found, blocks[is_fine]])
    return found[:count]


def write(
    path: Path, rows: Any, kind: GGMLQuantizationType, columns: int, **more: Any
) -> GgufTensor:
    """A file that is nothing but one tensor behind 32 bytes."""
    path.write_bytes(bytes(32) + rows.tobytes())
    shape = (len(rows), columns) if len(rows) > 1 else (columns,)
    return GgufTensor("x", "x", kind, shape, path, 32, rows.nbytes, **more)


def test_every_kind_that_the_package_reads_is_tried() -> None:
    assert {kind.name for kind in GGMLQuantizationType} > UNREADABLE
    assert len(KINDS) == 26


@pytest.mark.parametrize("slice_elements", [1, 5_000])
@pytest.mark.parametrize("head_rows", [0, HEAD_ROWS])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_numbers_are_those_of_the_package_rounded_to_bfloat16(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: GGMLQuantizationType,
    head_rows: int,
    slice_elements: int,
) -> None:
    monkeypatch.setattr(gguf_weights, "_SLICE_ELEMENTS", slice_elements)
    rng = np.random.default_rng(5)
    num_rows, columns = 3 * HEAD_ROWS, 512
    num_blocks = num_rows * columns // GGML_QUANT_SIZES[kind][0]
    rows = finite_blocks(kind, num_blocks, rng).reshape(num_rows, -1)
    tensor = write(tmp_path / "in", rows, kind, columns, head_rows=head_rows)

    write_weights([tensor], tmp_path / "out.safetensors", None)

    values = dequantize(rows, kind).reshape(num_rows, columns)
    if head_rows:
        values = unpermute_rotary(values, num_rows // head_rows)
    expected = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
    found = load_file(tmp_path / "out.safetensors")["x"]
    assert torch.equal(found.view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("head_rows", [0, HEAD_ROWS])
def test_vectors_are_read_whole(tmp_path: Path, kind: str, head_rows: int) -> None:
    type_ = GGMLQuantizationType[kind]
    values = finite_blocks(type_, 64, np.random.default_rng(3)).reshape(1, -1)
    tensor = write(tmp_path / "in", values, type_, 64, head_rows=head_rows)

    write_weights([tensor], tmp_path / "out.safetensors", None)

    expected = dequantize(values, type_).reshape(-1)
    if head_rows:
        expected = unpermute_rotary(expected, 64 // head_rows)
    found = load_file(tmp_path / "out.safetensors")["x"]
    assert torch.equal(found, torch.from_numpy(expected.copy()).to(torch.bfloat16))


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "IQ2_XXS"])
def test_memory_does_not_grow_with_a_tensor(tmp_path: Path, kind: str) -> None:
    type_ = GGMLQuantizationType[kind]
    columns = 1024
    blocks = columns // GGML_QUANT_SIZES[type_][0]
    few = finite_blocks(type_, 16 * blocks, np.random.default_rng(2)).reshape(16, -1)
    peaks = []
    for num_rows in (2048, 8192):
        tensor = write(tmp_path / "in", np.tile(few, (num_rows // 16, 1)), type_, columns)
        tracemalloc.start()
        write_weights([tensor], tmp_path / "out.safetensors", None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    # Four times the rows; in float32 they would take 34 MB, and 3 times that to round them.
    assert peaks[1] < 1.1 * peaks[0]
