"""The safetensors layout: 8 bytes of header length, a JSON header, then the raw tensors.

Reading headers needs nothing but the standard library, so the catalogue and the memory figures
stay quick; writing streams one tensor at a time, so a conversion never holds the whole model.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.core.errors import UnsupportedModel

_MAX_HEADER_BYTES = 100 << 20
# Element sizes in bits; sub-byte types are packed.
_DTYPE_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "F4": 4,
}


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor as a header describes it; `num_bytes` is its size in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def num_elements(self) -> int:
        """Elements, from the shape."""
        return math.prod(self.shape)


def read_header_bytes(path: Path) -> bytes:
    """The raw JSON header of one file. Raises UnsupportedModel where it is cut or is none."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise UnsupportedModel(f"{path}: {size} bytes are too few for a safetensors file")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(_MAX_HEADER_BYTES, size - 8):
            raise UnsupportedModel(
                f"{path}: not a complete safetensors file: header of {length} bytes "
                f"in a file of {size}"
            )
        return file.read(length)


def read_tensor_headers(path: Path) -> list[TensorHeader]:
    """Every tensor of one file, by its header. Raises UnsupportedModel for a damaged file."""
    raw = read_header_bytes(path)
    try:
        header = json.loads(raw)
        tensors = [
            _tensor_header(name, fields)
            for name, fields in header.items()
            if name != "__metadata__"
        ]
        end = max(
            (int(f["data_offsets"][1]) for n, f in header.items() if n != "__metadata__"), default=0
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UnsupportedModel(f"{path}: damaged safetensors header: {error}") from error
    expected = 8 + len(raw) + end
    actual = path.stat().st_size
    if actual != expected:
        raise UnsupportedModel(f"{path}: {actual} bytes where its header says {expected}")
    return tensors


def _tensor_header(name: str, fields: Mapping[str, Any]) -> TensorHeader:
    begin, end = fields["data_offsets"]
    shape = tuple(int(n) for n in fields["shape"])
    return TensorHeader(name, str(fields["dtype"]), shape, int(end) - int(begin))


def tensor_headers(folder: Path) -> list[TensorHeader]:
    """The headers of every tensor of a model folder, each name once."""
    found: dict[str, TensorHeader] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update((tensor.name, tensor) for tensor in read_tensor_headers(path))
    return list(found.values())


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
        num_bytes = math.prod(shape) * _DTYPE_BITS[dtype] // 8
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
