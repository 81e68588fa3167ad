"""The header of a file of packed weights: what lies where in it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

VERSION = 6
ALIGNMENT = 4096
HEADER_BYTES = 1 << 20
MAGIC = "millrace-packed"
# Panels, bits of bfloat16, and numbers; of any other kind nothing is written.
ITEM_BYTES = {"|u1": 1, "<i2": 2, "<f4": 4}
MAX_NUMBER = 1 << 62
MAX_DIMENSIONS = 4


@dataclass(frozen=True, slots=True)
class PackedIndex:
    """Arrays by name as (offset, numpy dtype, shape), and matrices as (kind, columns, k).

    A matrix has its panels in the array "NAME.panels" and maybe a bias in "NAME.bias". `num_bytes`
    is the length of the file, `extra` what its maker wants to know again.
    """

    num_bytes: int
    arrays: Mapping[str, tuple[int, str, tuple[int, ...]]]
    matrices: Mapping[str, tuple[int, int, int]]
    extra: Mapping[str, int]

    def header(self) -> bytes:
        """`HEADER_BYTES` to begin a file with. Raises `ValueError` where the index takes more."""
        return header_of(json.dumps(asdict(self)))

    @staticmethod
    def read(header: bytes, num_bytes: int) -> PackedIndex:
        """The index of a file of `num_bytes`, from its first `HEADER_BYTES`.

        Raises `ValueError` unless it is of this version, undamaged, and speaks of nothing that lies
        outside of the file.
        """
        first, _, text = header.partition(b"\n")
        if len(header) != HEADER_BYTES or first + b"\n" != _first_line(text):
            raise ValueError(f"this is no undamaged file of version {VERSION}")
        try:
            return checked_index(json.loads(text), num_bytes)
        except RecursionError as error:
            raise ValueError("the index is nested too deeply") from error


def header_of(index: str) -> bytes:
    """`HEADER_BYTES` with this text. Raises `ValueError` where it takes more."""
    text = index.encode()
    room = HEADER_BYTES - len(_first_line(text))
    if len(text) > room:
        raise ValueError(f"the index takes {len(text)} bytes; {room} are reserved")
    text = text.ljust(room)
    return _first_line(text) + text


def checked_index(content: Any, num_bytes: int) -> PackedIndex:
    """`content` as an index of a file of `num_bytes`; raises `ValueError` where it is none."""
    parts = {name: dict for name in ("arrays", "matrices", "extra")}
    if not isinstance(content, dict) or content.keys() != {"num_bytes", *parts}:
        raise ValueError("the index has other parts")
    if any(not isinstance(content[name], kind) for name, kind in parts.items()):
        raise ValueError("a part of the index is no object")
    said = content["num_bytes"]
    if not _is_number(said) or said != num_bytes:
        raise ValueError(f"the file has {num_bytes} bytes, not {said!r:.40}")
    for name, entry in content["arrays"].items():
        if not _is_array(entry, num_bytes):
            raise ValueError(f"array {name:.80} is {entry!r:.80} in a file of {num_bytes} bytes")
    for name, entry in content["matrices"].items():
        if not isinstance(entry, list) or len(entry) != 3 or not all(map(_is_number, entry)):
            raise ValueError(f"matrix {name:.80} is {entry!r:.80}")
    for name, value in content["extra"].items():
        if not _is_number(value):
            raise ValueError(f"{name:.80} is {value!r:.80}")
    return PackedIndex(**content)


def _is_array(entry: Any, num_bytes: int) -> bool:
    """True where it lies behind the header, aligned, and ends inside of the file."""
    if not isinstance(entry, list) or len(entry) != 3:
        return False
    offset, dtype, shape = entry
    if not _is_number(offset) or not isinstance(dtype, str) or not isinstance(shape, list):
        return False
    if dtype not in ITEM_BYTES or len(shape) > MAX_DIMENSIONS or not all(map(_is_number, shape)):
        return False
    end: int = offset + math.prod(shape) * ITEM_BYTES[dtype]
    return offset >= HEADER_BYTES and offset % ALIGNMENT == 0 and end <= num_bytes


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_NUMBER


def _first_line(text: bytes) -> bytes:
    checksum = hashlib.blake2b(text, digest_size=16).hexdigest()
    return f"{MAGIC} {VERSION} {checksum}\n".encode()
