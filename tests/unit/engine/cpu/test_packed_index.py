"""The header of a packed file: whatever is damaged or impossible in it is refused, one by one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from millrace.engine.kernels.cpu.packed_index import (
    ALIGNMENT,
    HEADER_BYTES,
    MAX_NUMBER,
    PackedIndex,
    checked_index,
)

NUM_BYTES = HEADER_BYTES + 3 * ALIGNMENT
INDEX = PackedIndex(
    NUM_BYTES,
    {
        "norm": (HEADER_BYTES, "<f4", (64,)),
        "m.panels": (HEADER_BYTES + ALIGNMENT, "|u1", (2, 64)),
        "embedding": (HEADER_BYTES + 2 * ALIGNMENT, "<i2", (32, 64)),
        "nothing": (HEADER_BYTES, "<f4", (0,)),
    },
    {"m": (2, 20, 50)},
    {"num_parameters": 5},
)


def content() -> dict[str, Any]:
    """The index as it comes from the file."""
    return dict(json.loads(json.dumps(asdict(INDEX))))


def test_index_comes_back_from_its_header():
    read = PackedIndex.read(INDEX.header(), NUM_BYTES)

    assert json.dumps(asdict(read)) == json.dumps(asdict(INDEX))


def test_index_longer_than_its_place_is_refused():
    long = PackedIndex(1, {}, {}, {f"{number:0100}": 1 for number in range(11000)})

    with pytest.raises(ValueError, match="are reserved"):
        long.header()


def test_header_with_any_flipped_bit_is_refused(chance):
    header = INDEX.header()
    used = len(header.rstrip())
    places = [*range(60), *(chance.randrange(used) for _ in range(200))]
    places += [chance.randrange(used, HEADER_BYTES) for _ in range(20)]
    for place in places:
        damaged = bytearray(header)
        damaged[place] ^= 1 << chance.randrange(8)
        with pytest.raises(ValueError, match="no undamaged file"):
            PackedIndex.read(bytes(damaged), NUM_BYTES)


@pytest.mark.parametrize("length", [0, 1, 60, 500, HEADER_BYTES - 1])
def test_header_that_ends_early_is_refused(length):
    with pytest.raises(ValueError, match="no undamaged file"):
        PackedIndex.read(INDEX.header()[:length], NUM_BYTES)


@pytest.mark.parametrize("num_bytes", [0, HEADER_BYTES, NUM_BYTES - 1, NUM_BYTES + 1])
def test_file_of_another_length_is_refused(num_bytes):
    with pytest.raises(ValueError, match=f"the file has {num_bytes} bytes, not {NUM_BYTES}"):
        PackedIndex.read(INDEX.header(), num_bytes)


def _sets(*path: str | int) -> Callable[[Any, Any], None]:
    def change(index: Any, value: Any) -> None:
        for step in path[:-1]:
            index = index[step]
        index[path[-1]] = value

    return change


NO_NUMBERS: tuple[Any, ...] = (
    -1,
    MAX_NUMBER,
    1 << 64,
    0.5,
    8.0,
    True,
    None,
    "8",
    [8],
    {},
    float("nan"),
)
NO_ARRAYS: tuple[Any, ...] = (None, 7, "x", {}, [], [1, "<f4"], [HEADER_BYTES, "<f4", [1], 0])
REFUSED = {
    "bytes": (_sets("num_bytes"), (*NO_NUMBERS, 0, NUM_BYTES + 1)),
    "arrays": (_sets("arrays"), (None, [], 1, "x")),
    "matrices": (_sets("matrices"), (None, [], 1)),
    "extra": (_sets("extra"), (None, [], 1)),
    "an array": (_sets("arrays", "norm"), NO_ARRAYS),
    "offset": (
        _sets("arrays", "norm", 0),
        (*NO_NUMBERS, 0, ALIGNMENT, HEADER_BYTES + 1, HEADER_BYTES + 64, NUM_BYTES, 1 << 61),
    ),
    "dtype": (_sets("arrays", "norm", 1), (None, "", "<f8", ">f4", "O", "<f4,<f4", 4, ["<f4"])),
    "shape": (_sets("arrays", "norm", 2), (None, 64, "64", {}, [1] * 9, [1 << 61, 1 << 61])),
    "length": (_sets("arrays", "norm", 2, 0), (*NO_NUMBERS, 3 * ALIGNMENT // 4 + 1, 1 << 61)),
    "second length": (_sets("arrays", "m.panels", 2, 1), (*NO_NUMBERS, ALIGNMENT + 1, 1 << 61)),
    "a matrix": (_sets("matrices", "m"), (None, 1, [], [1, 2], [1, 2, 3, 4])),
    "kind": (_sets("matrices", "m", 0), NO_NUMBERS),
    "columns": (_sets("matrices", "m", 1), NO_NUMBERS),
    "another number": (_sets("extra", "num_parameters"), NO_NUMBERS),
}


@pytest.mark.parametrize("name", REFUSED)
def test_index_that_cannot_be_is_refused(name):
    change, values = REFUSED[name]
    for value in values:
        changed = content()
        change(changed, value)
        with pytest.raises(ValueError, match=r"."):
            checked_index(changed, NUM_BYTES)


@pytest.mark.parametrize("name", ["num_bytes", "arrays", "matrices", "extra"])
def test_index_without_a_part_is_refused(name):
    changed = content()
    del changed[name]
    with pytest.raises(ValueError, match="other parts"):
        checked_index(changed, NUM_BYTES)
    with pytest.raises(ValueError, match="other parts"):
        checked_index({**content(), "more": 1}, NUM_BYTES)


@pytest.mark.parametrize("changed", [None, 1, [], "x", {}])
def test_content_that_is_no_index_is_refused(changed):
    with pytest.raises(ValueError, match="other parts"):
        checked_index(changed, NUM_BYTES)
