"""Packed weights as one read-only mapped file, shared by all workers of a machine.

The file: a header of `HEADER_BYTES`, then arrays, each at a multiple of 4096 bytes. The header is a
line "millrace-packed VERSION CHECKSUM" and an index in JSON, filled up with blanks; the checksum is
that of all behind the line (packed_index.py). It is written once per checkpoint, instruction path
and kind of weights, beside its final place, and moved there when complete.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from millrace.core.errors import ConfigError, UnsupportedModel

from .library import (
    FloatArray,
    Kernels,
    MatrixStruct,
    address,
    floats,
    padded_columns,
)
from .packed_index import ALIGNMENT, HEADER_BYTES, PackedIndex


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A matrix [columns, k] in panels, ready for the kernels; keeps its memory alive."""

    kind: int
    columns: int
    k: int
    panels: npt.NDArray[np.uint8]
    bias: FloatArray | None

    @property
    def struct(self) -> MatrixStruct:
        """What the kernels take."""
        return MatrixStruct(
            panels=address(self.panels),
            bytes=self.panels.nbytes,
            bias=floats(self.bias),
            kind=self.kind,
            columns=self.columns,
            k=self.k,
        )

    @property
    def num_bytes(self) -> int:
        """Bytes of weights, scales included."""
        return self.panels.nbytes


def pack_matrix(
    kernels: Kernels, kind: int, weight: FloatArray, bias: FloatArray | None = None
) -> PackedMatrix:
    """`weight` [columns, k] float32 in panels of `kind`."""
    columns, k = weight.shape
    # Nothing says where in a file of tensors a mapped one begins.
    weight = np.require(weight, requirements=("C", "ALIGNED"))
    panels = _aligned(kernels.panel_bytes(kind, columns, k))
    code = kernels.c.mr_pack(
        kind, address(weight), weight.size, columns, k, address(panels), panels.nbytes
    )
    kernels.check(code)
    if bias is not None:
        wide = np.zeros(padded_columns(columns), dtype=np.float32)
        wide[:columns] = bias
        bias = wide
    return PackedMatrix(kind, columns, k, panels, bias)


def _aligned(num_bytes: int) -> npt.NDArray[np.uint8]:
    room = np.empty(num_bytes + 64, dtype=np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + num_bytes]


class PackedWriter:
    """Collects arrays into a file. `add` and `add_matrix` write at once; nothing is kept."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._arrays: dict[str, tuple[int, str, tuple[int, ...]]] = {}
        self._matrices: dict[str, tuple[int, int, int]] = {}
        self._end = HEADER_BYTES

    def add(self, name: str, array: npt.NDArray[Any]) -> None:
        """Adds an array of any numpy type."""
        self._file.seek(self._end)
        self._file.write(np.ascontiguousarray(array).data)
        self._arrays[name] = (self._end, array.dtype.str, array.shape)
        self._end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT

    def add_matrix(self, name: str, matrix: PackedMatrix) -> None:
        """Adds a matrix with its bias."""
        self._matrices[name] = (matrix.kind, matrix.columns, matrix.k)
        self.add(f"{name}.panels", matrix.panels)
        if matrix.bias is not None:
            self.add(f"{name}.bias", matrix.bias)

    def finish(self, extra: Mapping[str, int]) -> None:
        """Writes the header. `extra` comes back as `PackedFile.extra`."""
        index = PackedIndex(self._end, self._arrays, self._matrices, extra)
        self._file.seek(0)
        self._file.write(index.header())
        self._file.truncate(self._end)
        # Moved to its place before it is on the disk, it could be found there full of zeros.
        self._file.flush()
        os.fsync(self._file.fileno())


class PackedFile:
    """A finished file, mapped; arrays are views of the mapping.

    Raises `ValueError` for a file that is not whole, of another version, or of another kind: no
    array of it reaches beyond its end.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self._index = PackedIndex.read(file.read(HEADER_BYTES), size)
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
        if hasattr(mmap, "MADV_WILLNEED"):
            self._map.madvise(mmap.MADV_WILLNEED)
        self.extra = self._index.extra

    def array(self, name: str) -> npt.NDArray[Any]:
        """An array by name; raises `KeyError`."""
        offset, dtype, shape = self._index.arrays[name]
        found: npt.NDArray[Any] = np.frombuffer(
            self._map, dtype=np.dtype(dtype), count=math.prod(shape), offset=offset
        )
        return found.reshape(shape)

    def try_array(self, name: str) -> npt.NDArray[Any] | None:
        """An array by name, or None."""
        return self.array(name) if name in self._index.arrays else None

    def matrix(self, name: str) -> PackedMatrix:
        """A matrix by name; raises `KeyError`."""
        kind, columns, k = self._index.matrices[name]
        return PackedMatrix(
            kind=kind,
            columns=columns,
            k=k,
            panels=self.array(f"{name}.panels"),
            bias=self.try_array(f"{name}.bias"),
        )


def open_packed(
    path: Path,
    write: Callable[[PackedWriter], None],
    accept: Callable[[PackedFile], None] = lambda file: None,
) -> PackedFile:
    """The file at `path`, made by `write` where it is not there; two processes make it once.

    `accept` raises `ValueError` or `KeyError` for a file that holds something else than it should.
    Such a file, and one that is not whole, is made again. Raises `ConfigError` where the disk takes
    no file, `UnsupportedModel` where a new one is not accepted either.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = _try_open(path, accept)
            if found is None:
                _write_to(path, write)
                found = PackedFile(path)
                accept(found)
            return found
    except OSError as error:
        raise ConfigError(f"cannot keep packed weights: {error}", field="cache_dir") from error
    except (ValueError, KeyError) as error:
        raise UnsupportedModel(
            f"{path.name} holds other weights than it should: {error}"
        ) from error


def _write_to(path: Path, write: Callable[[PackedWriter], None]) -> None:
    partial = path.with_suffix(f".{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            write(PackedWriter(file))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _try_open(path: Path, accept: Callable[[PackedFile], None]) -> PackedFile | None:
    try:
        found = PackedFile(path)
        accept(found)
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return found
