"""Writes safetensors files one tensor at a time, so that a conversion never holds a whole model.

They are read by `millrace.engine.tensor_headers`.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from millrace.engine.tensor_headers import DTYPE_BITS


def write_safetensors(
    path: Path,
    tensors: Sequence[tuple[str, str, tuple[int, ...]]],
    contents: Iterable[bytes | memoryview],
) -> None:
    """Write `tensors` (name, dtype, shape) with `contents` in the same order, piece by piece.

    A tensor may come in several pieces. Raises ValueError where the bytes of a tensor do not fit
    its shape.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    sizes: list[int] = []
    offset = 0
    for name, dtype, shape in tensors:
        num_bytes = math.prod(shape) * DTYPE_BITS[dtype] // 8
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + num_bytes],
        }
        sizes.append(num_bytes)
        offset += num_bytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)))
        file.write(raw)
        pieces = iter(contents)
        for (name, _, _), size in zip(tensors, sizes, strict=True):
            written = 0
            while written < size:
                view = memoryview(next(pieces, b"")).cast("B")
                written += len(view)
                if not len(view) or written > size:
                    raise ValueError(f"tensor {name}: {written} bytes where its shape needs {size}")
                file.write(view)
        if any(pieces):
            raise ValueError("there are more bytes than tensors")
