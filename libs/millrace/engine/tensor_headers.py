"""Headers of safetensors files: 8 bytes of length, a JSON object, then the raw tensors.

Reading them needs nothing but the standard library: a checkpoint is judged by them before any of
its weights is read, and before torch is imported.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.core.errors import UnsupportedModel

from .config_json import read_json

INDEX_FILE = "model.safetensors.index.json"
# How the stand-in begins that Git LFS leaves where a large file was not fetched.
LFS_POINTER = b"version https://git-lfs"
_MAX_HEADER_BYTES = 100 << 20
# Element sizes in bits; sub-byte types are packed.
DTYPE_BITS = {
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
    """The raw JSON header of one file. Raises `UnsupportedModel` if it is cut or is none."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(len(LFS_POINTER))
            if prefix == LFS_POINTER:
                raise UnsupportedModel(f"{path}: a git-lfs pointer, not the file it stands for")
            if len(prefix) < 8:
                raise UnsupportedModel(f"{path}: {size} bytes are too few for a safetensors file")
            (length,) = struct.unpack("<Q", prefix[:8])
            file.seek(8)
            if length > min(_MAX_HEADER_BYTES, size - 8):
                raise UnsupportedModel(
                    f"{path}: not a complete safetensors file: header of {length} bytes "
                    f"in a file of {size}"
                )
            return file.read(length)
    except OSError as error:
        raise UnsupportedModel(f"cannot read {path}: {error}") from error


def read_tensor_headers(path: Path) -> list[TensorHeader]:
    """Every tensor of one file, in its order. Raises `UnsupportedModel` for a damaged file."""
    raw = read_header_bytes(path)
    try:
        tensors, num_bytes = _parse(raw)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UnsupportedModel(f"{path}: damaged safetensors header: {what}") from error
    expected = 8 + len(raw) + num_bytes
    actual = path.stat().st_size
    if actual != expected:
        raise UnsupportedModel(f"{path}: {actual} bytes where its header says {expected}")
    return tensors


def tensor_headers(folder: Path) -> list[TensorHeader]:
    """The headers of all tensors that are loaded from a folder, each name once.

    Raises `UnsupportedModel` for a file that is missing or damaged, and for a tensor in two files:
    readers differ in which they take.
    """
    found: dict[str, TensorHeader] = {}
    file_of: dict[str, str] = {}
    for file in weight_files(folder):
        for tensor in read_tensor_headers(folder / file):
            other = file_of.setdefault(tensor.name, file)
            if other != file:
                raise UnsupportedModel(
                    f"{folder}: tensor {tensor.name!r} is in both {other} and {file}"
                )
            found[tensor.name] = tensor
    return list(found.values())


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files that are loaded; raises `UnsupportedModel` if none is."""
    index = folder / INDEX_FILE
    if index.is_file():
        return _indexed_files(index)
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    if "model.safetensors" in names:
        return ["model.safetensors"]
    if not names:
        raise UnsupportedModel(f"{folder} has no *.safetensors file; other formats are not loaded")
    return names


def _indexed_files(index: Path) -> list[str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnsupportedModel(f"{index} has no weight_map")
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise UnsupportedModel(f"{index} names {name!r}, which is no file of its folder")
    return sorted(set(weight_map.values()))


def _parse(raw: bytes) -> tuple[list[TensorHeader], int]:
    """The tensors of a header in the order of the file, and the bytes that they take."""
    if not raw.startswith(b"{"):
        raise ValueError("it does not begin with {")
    header = json.loads(raw, object_pairs_hook=_unique)
    notes = header.pop("__metadata__", None)
    notes = {} if notes is None else notes
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise ValueError("its __metadata__ is not made of texts")
    places = {name: _place(name, fields) for name, fields in header.items()}
    names = sorted(places, key=places.__getitem__)
    end = 0
    for name in names:
        if places[name][0] != end:
            raise ValueError(f"tensor {name!r} begins at {places[name][0]}, not at {end}")
        end = places[name][1]
    return [_tensor_header(name, header[name], places[name]) for name in names], end


def _place(name: str, fields: Mapping[str, Any]) -> tuple[int, int]:
    begin, end = fields["data_offsets"]
    if not (_is_count(begin) and _is_count(end) and begin <= end):
        raise ValueError(f"tensor {name!r} has the offsets {fields['data_offsets']}")
    return begin, end


def _tensor_header(name: str, fields: Mapping[str, Any], place: tuple[int, int]) -> TensorHeader:
    shape, dtype = fields["shape"], fields["dtype"]
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise ValueError(f"tensor {name!r} has the shape {shape}")
    tensor = TensorHeader(name, str(dtype), tuple(shape), place[1] - place[0])
    bits = DTYPE_BITS.get(tensor.dtype)
    if bits is not None and tensor.num_elements * bits != 8 * tensor.num_bytes:
        raise ValueError(
            f"tensor {name!r} has {tensor.num_bytes} bytes for {dtype} of shape {shape}"
        )
    return tensor


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys all differ: of two equal ones another reader may take the other."""
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name stands in it twice")
    return content
