"""The packed file: made once, read-only, and made again where it is not whole."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest

from millrace.core.errors import ConfigError, UnsupportedModel
from millrace.engine.kernels.cpu.library import INT8
from millrace.engine.kernels.cpu.packed_index import ALIGNMENT, HEADER_BYTES, MAGIC, VERSION
from millrace.engine.kernels.cpu.packed_place import checkpoint_key
from millrace.engine.kernels.cpu.packed_weights import (
    PackedMatrix,
    open_packed,
)

NUMBERS = np.arange(3000, dtype=np.float32).reshape(60, 50)


def write(writer):
    writer.add("numbers", NUMBERS)
    panels = np.arange(64 * 32, dtype=np.uint8)
    writer.add_matrix("m", PackedMatrix(INT8, 20, 50, panels, np.full(32, 7, np.float32)))
    writer.add_matrix("bare", PackedMatrix(INT8, 20, 50, panels, None))
    writer.finish({"weight_bytes": 5})


def never(writer):
    raise AssertionError("packed again")


def test_what_was_written_comes_back_read_only_and_aligned(tmp_path):
    open_packed(tmp_path / "w.bin", write)
    file = open_packed(tmp_path / "w.bin", never)

    numbers = file.array("numbers")
    assert np.array_equal(numbers, NUMBERS)
    assert not numbers.flags.writeable
    matrix = file.matrix("m")
    assert (matrix.kind, matrix.columns, matrix.k) == (INT8, 20, 50)
    assert matrix.panels.ctypes.data % ALIGNMENT == 0
    assert matrix.bias is not None and matrix.bias.tolist() == [7] * 32
    assert file.matrix("bare").bias is None
    assert file.extra == {"weight_bytes": 5}
    assert file.try_array("nothing") is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.bin", "w.lock"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_mapping_is_shared_and_cannot_be_written(tmp_path):
    file = open_packed(tmp_path / "w.bin", write)

    maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    assert [line.split()[1] for line in maps if line.endswith("w.bin")] == ["r--s"]
    assert file.array("numbers")[1, 0] == 50


def _truncate(path: Path) -> None:
    os.truncate(path, HEADER_BYTES + 100)


def _cut_header(path: Path) -> None:
    os.truncate(path, HEADER_BYTES // 2)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _other_json(path: Path) -> None:
    path.write_bytes(b"[1, 2]".ljust(path.stat().st_size))


def _other_version(path: Path) -> None:
    ours = f"{MAGIC} {VERSION} ".encode()
    path.write_bytes(path.read_bytes().replace(ours, f"{MAGIC} {VERSION - 1} ".encode(), 1))


def _grow(path: Path) -> None:
    os.truncate(path, path.stat().st_size + ALIGNMENT)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"numbers")] ^= 1
    path.write_bytes(content)


def _noise(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


@pytest.mark.parametrize(
    "spoil",
    [_truncate, _cut_header, _empty, _zero, _other_json, _other_version, _grow, _flip, _noise],
)
def test_file_that_is_not_whole_is_made_again(tmp_path, spoil):
    path = tmp_path / "w.bin"
    open_packed(path, write)
    spoil(path)

    assert np.array_equal(open_packed(path, write).array("numbers"), NUMBERS)
    assert np.array_equal(open_packed(path, never).array("numbers"), NUMBERS)


@pytest.mark.parametrize("error", [ValueError("too short"), KeyError("7.qkv")])
def test_file_that_is_not_accepted_is_made_again(tmp_path, error):
    path = tmp_path / "w.bin"
    open_packed(path, write)
    seen: list[object] = []

    def accept(file):
        seen.append(file)
        if len(seen) == 1:
            raise error

    assert open_packed(path, write, accept) is seen[1]
    assert len(seen) == 2
    open_packed(path, never)


def test_new_file_that_is_not_accepted_is_refused(tmp_path):
    def accept(file):
        raise ValueError("head.columns is 700; it must be 640")

    with pytest.raises(UnsupportedModel, match=r"w\.bin .*: head\.columns is 700; it must be 640"):
        open_packed(tmp_path / "w.bin", write, accept)


def test_file_whose_making_failed_is_not_left_behind(tmp_path):
    def fail(writer):
        writer.add("numbers", NUMBERS)
        raise RuntimeError("no such tensor")

    with pytest.raises(RuntimeError, match="no such tensor"):
        open_packed(tmp_path / "w.bin", fail)

    assert [path.name for path in tmp_path.iterdir()] == ["w.lock"]
    open_packed(tmp_path / "w.bin", write)


def test_folder_that_takes_no_file_is_a_clear_error(tmp_path):
    (tmp_path / "weights").write_text("a file")

    with pytest.raises(ConfigError, match="cannot keep packed weights") as error:
        open_packed(tmp_path / "weights" / "w.bin", write)
    assert error.value.field == "cache_dir"


def test_workers_that_start_at_once_make_it_once(tmp_path):
    # Threads stand in for processes: each opens the lock file anew, as a process would.
    at_once = Barrier(4)
    made: list[int] = []

    def write_and_count(writer):
        made.append(1)
        write(writer)

    def start(_):
        at_once.wait(60)
        return open_packed(tmp_path / "w.bin", write_and_count).array("numbers")

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(start, range(4)))

    assert all(np.array_equal(numbers, NUMBERS) for numbers in found)
    assert made == [1]


def test_key_changes_with_the_checkpoint_and_the_parts(tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text("x")
    key = checkpoint_key(tmp_path, "int8", "avx2")

    assert checkpoint_key(tmp_path, "int8", "avx2") == key
    assert checkpoint_key(tmp_path, "int8", "avx512") != key
    (tmp_path / "model.safetensors").write_text("xy")
    assert checkpoint_key(tmp_path, "int8", "avx2") != key
