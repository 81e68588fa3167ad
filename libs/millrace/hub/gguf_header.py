"""The header of a GGUF file: which keys and tensors it has, and where they lie.

Read with the standard library alone, and no list is decoded before somebody asks for it: a
vocabulary is long, and most files that are refused are refused before it matters. Layout:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.core.errors import UnsupportedModel
from millrace.engine.tensor_headers import LFS_POINTER

GGUF_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_TEXT, _LIST = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q"} | {
    12: "d"
}
_FLAG = 7
# The first 8 bytes, then the numbers of tensors and keys.
_START_BYTES = 24
_MAX_NAME_BYTES = 1 << 16
_MAX_LIST_ITEMS = 1 << 24
_MAX_DIMENSIONS = 4
_MAX_SHOWN = 80
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GgufEntry:
    """Where the value of a key lies. `item_type` and `count` are those of a list's items."""

    value_type: int
    item_type: int
    count: int
    position: int


@dataclass(frozen=True, slots=True)
class GgufTensorEntry:
    """A tensor as the header has it; `offset` counts from where the tensors begin.

    shape: slowest dimension first, the other way round than in the file.
    """

    name: str
    type_code: int
    shape: tuple[int, ...]
    offset: int


class GgufHeader:
    """`entries` by key, `tensors` in the order of the file, `end` where the header is over.

    Raises UnsupportedModel, naming the file, where it is no GGUF file, is cut or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            start = file.read(_START_BYTES)
            self.size = file.seek(0, 2)
            _check_start(path, start, self.size)
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        num_tensors, num_keys = struct.unpack_from("<QQ", start, 8)
        self.end = _START_BYTES
        self.entries: Mapping[str, GgufEntry] = dict(self._read_entries(num_keys))
        self.tensors = tuple(self._read_tensors(num_tensors))

    def value(self, key: str) -> Any:
        """The value of a key that is there: int, float, bool, str, or a list of one of these."""
        entry = self.entries[key]
        if entry.value_type == _TEXT:
            return self._text_at(entry.position, key)[0]
        if entry.value_type != _LIST:
            return self._numbers(entry.value_type, 1, entry.position, key)[0]
        if entry.item_type == _TEXT:
            return list(self._texts(entry, key))
        return self._numbers(entry.item_type, entry.count, entry.position, key)

    def fault(self, what: str) -> UnsupportedModel:
        """The error to raise; it names the file."""
        return UnsupportedModel(f"{self.path}: {what}")

    def _read_entries(self, num_keys: int) -> Iterator[tuple[str, GgufEntry]]:
        for key in self._names("key", num_keys):
            yield key, self._entry(self._u32(shown(key)), key)

    def _entry(self, value_type: int, key: str) -> GgufEntry:
        item_type, count = value_type, 1
        if value_type == _LIST:
            item_type, count = self._u32(key), self._u64(key)
            if count > _MAX_LIST_ITEMS:
                raise self.fault(
                    f"GGUF key {shown(key)} is a list of {count}, over {_MAX_LIST_ITEMS}"
                )
        entry = GgufEntry(value_type, item_type, count, self.end)
        if item_type in _NUMBERS:
            self._advance(count * struct.calcsize(_NUMBERS[item_type]), key)
        elif item_type == _TEXT:
            self._skip_texts(count, key)
        else:
            raise self.fault(
                f"GGUF key {shown(key)} has values of type {item_type}, which is unknown"
            )
        return entry

    def _skip_texts(self, count: int, key: str) -> None:
        position = self.end
        for _ in range(count):
            self._check_ends(position + _U64.size, key)
            position += _U64.size + _U64.unpack_from(self._data, position)[0]
        self._check_ends(position, key)
        self.end = position

    def _read_tensors(self, num_tensors: int) -> Iterator[GgufTensorEntry]:
        for name in self._names("tensor", num_tensors):
            num_dimensions = self._u32(name)
            if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
                raise self.fault(f"GGUF tensor {shown(name)} has {num_dimensions} dimensions")
            shape = tuple(reversed([self._u64(name) for _ in range(num_dimensions)]))
            yield GgufTensorEntry(name, self._u32(name), shape, self._u64(name))

    def _names(self, kind: str, count: int) -> Iterator[str]:
        """Each name where it is read; what belongs to it lies between it and the next."""
        seen: set[str] = set()
        for index in range(count):
            name = self._name(f"{kind} {index + 1} of {count}")
            if name in seen:
                raise self.fault(f"GGUF {kind} {shown(name)} stands in it twice")
            seen.add(name)
            yield name

    def _name(self, what: str) -> str:
        length = self._u64(what)
        if length > _MAX_NAME_BYTES:
            raise self.fault(f"damaged: the name of {what} is {length} bytes long")
        text, end = self._text_at(self.end - _U64.size, what)
        self.end = end
        return text

    def _u32(self, what: str) -> int:
        self._advance(_U32.size, what)
        number: int = _U32.unpack_from(self._data, self.end - _U32.size)[0]
        return number

    def _u64(self, what: str) -> int:
        self._advance(_U64.size, what)
        number: int = _U64.unpack_from(self._data, self.end - _U64.size)[0]
        return number

    def _advance(self, num_bytes: int, what: str) -> None:
        self._check_ends(self.end + num_bytes, what)
        self.end += num_bytes

    def _check_ends(self, end: int, what: str) -> None:
        if end > self.size:
            raise self.fault(
                f"cut off or damaged: {what} goes on to byte {end}, the file has {self.size}"
            )

    def _numbers(self, code: int, count: int, position: int, key: str) -> list[Any]:
        found = list(struct.unpack_from(f"<{count}{_NUMBERS[code]}", self._data, position))
        if code != _FLAG:
            return found
        if bad := [value for value in found if value > 1]:
            raise self.fault(f"GGUF key {shown(key)} is {bad[0]}, neither true nor false")
        return [bool(value) for value in found]

    def _texts(self, entry: GgufEntry, key: str) -> Iterator[str]:
        position = entry.position
        for index in range(entry.count):
            text, position = self._text_at(position, f"{key}[{index}]")
            yield text

    def _text_at(self, position: int, what: str) -> tuple[str, int]:
        """A text that is preceded by its length, and where it ends."""
        start = position + _U64.size
        end = start + _U64.unpack_from(self._data, position)[0]
        self._check_ends(end, what)
        try:
            return str(self._data[start:end], "utf-8"), end
        except UnicodeDecodeError as error:
            raise self.fault(f"damaged: {what} is no UTF-8 text: {error.reason}") from error


def _check_start(path: Path, start: bytes, size: int) -> None:
    if start.startswith(LFS_POINTER):
        raise UnsupportedModel(
            f"{path}: a git-lfs pointer of {size} bytes, not the file it stands for; fetch that "
            "with `git lfs pull`"
        )
    if len(start) < _START_BYTES:
        raise UnsupportedModel(f"{path}: {size} bytes are too few for a GGUF file")
    if not start.startswith(GGUF_MAGIC):
        raise UnsupportedModel(
            f"{path}: not a GGUF file: it begins with {start[:4]!r}, not {GGUF_MAGIC!r}"
        )
    version: int = _U32.unpack_from(start, len(GGUF_MAGIC))[0]
    if version and version & 0xFFFF == 0:
        raise UnsupportedModel(f"{path}: a big-endian GGUF file; only little-endian ones are read")
    if version not in _VERSIONS:
        raise UnsupportedModel(f"{path}: GGUF version {version}; only 2 and 3 are read")


def shown(value: Any) -> str:
    """A value as a line of an error takes it."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
