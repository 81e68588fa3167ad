"""Tensors of a GGUF model, dequantised with the `gguf` package and stored as bfloat16.

Rows are worked on a slice at a time, so that memory does not grow with the model. llama.cpp stores
the Q and K projections of the Llama architecture with each head's two rotary halves interleaved;
that is undone here, so the folder is an ordinary checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from millrace.core.errors import UnsupportedModel

from .bfloat16 import NOT_FINITE, to_bfloat16_bits
from .gguf_header import shown
from .gguf_tensors import GgufTensor, gguf_package
from .progress import Progress
from .safetensors_file import write_safetensors
from .staging import check_disk

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_SLICE_ELEMENTS = 1 << 20


def write_weights(tensors: Sequence[GgufTensor], path: Path, stream: TextIO | None) -> None:
    """Write `tensors` as one safetensors file.

    Raises UnsupportedModel for a type that cannot be dequantised, before anything is written, and
    for numbers that are not finite; ConfigError where the disk is too full.
    """
    import numpy as np

    check_types(tensors)
    check_disk(path.parent, 2 * sum(int(np.prod(t.shape)) for t in tensors), "the converted model")
    progress = Progress("converting weights", sum(t.num_bytes for t in tensors), stream)
    progress.advance(0)
    layout = [(tensor.checkpoint_name, "BF16", tensor.shape) for tensor in tensors]
    write_safetensors(path, layout, _contents(tensors, progress))
    progress.finish()


def check_types(tensors: Sequence[GgufTensor]) -> None:
    """Raises UnsupportedModel, naming tensor and type, for what cannot be dequantised."""
    import numpy as np

    sizes = gguf_package().GGML_QUANT_SIZES
    checked = set()
    for tensor in tensors:
        if tensor.type not in checked:
            checked.add(tensor.type)
            _dequantized(np.zeros((1, sizes[tensor.type][1]), dtype=np.uint8), tensor)


def _contents(tensors: Sequence[GgufTensor], progress: Progress) -> Iterator[memoryview]:
    for tensor in tensors:
        with tensor.path.open("rb") as file:
            for bits, num_bytes in _slices(file, tensor):
                yield bits.data
                progress.advance(num_bytes)


def _slices(
    file: BufferedReader, tensor: GgufTensor
) -> Iterator[tuple[npt.NDArray[np.uint16], int]]:
    """Rows of a tensor as bits of bfloat16, with the bytes that they took in the file."""
    import numpy as np

    # A vector is one row.
    num_rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
    row_bytes = tensor.num_bytes // num_rows
    step = max(1, _SLICE_ELEMENTS // tensor.shape[-1])
    if tensor.head_rows:
        step = max(1, step // tensor.head_rows) * tensor.head_rows
    buffer = np.empty((min(step, num_rows), row_bytes), dtype=np.uint8)
    file.seek(tensor.position)
    for first in range(0, num_rows, step):
        rows = buffer[: min(step, num_rows - first)]
        if file.readinto(rows.data) != rows.nbytes:
            raise UnsupportedModel(f"{tensor.path}: it has become shorter while it was read")
        values = _dequantized(rows, tensor).reshape(-1, *tensor.shape[1:])
        if tensor.head_rows:
            values = unpermute_rotary(values, len(values) // tensor.head_rows)
        bits = to_bfloat16_bits(values)
        if ((bits & NOT_FINITE) == NOT_FINITE).any():
            raise UnsupportedModel(
                f"{tensor.path}: GGUF tensor {shown(tensor.name)} has numbers that are not finite, "
                f"in its rows {first} to {first + len(rows) - 1}"
            )
        yield bits, rows.nbytes


def _dequantized(rows: npt.NDArray[np.uint8], tensor: GgufTensor) -> npt.NDArray[np.float32]:
    quants: Any = gguf_package().quants
    try:
        values: npt.NDArray[np.float32] = quants.dequantize(rows, tensor.type)
    except NotImplementedError as error:
        raise UnsupportedModel(
            f"{tensor.path}: GGUF tensor {shown(tensor.name)} has type {tensor.type.name}, "
            "which cannot be dequantised"
        ) from error
    return values


def unpermute_rotary(values: npt.NDArray[np.float32], num_heads: int) -> npt.NDArray[np.float32]:
    """Put each head's rotary halves one after the other again.

    values: [num_heads * head_dim, ...] with rows of a head as (x0, y0, x1, y1, ...); returned with
    (x0, x1, ..., y0, y1, ...), the order of transformers' Llama.
    """
    half = values.shape[0] // num_heads // 2
    pairs = values.reshape(num_heads, half, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)
