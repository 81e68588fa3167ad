"""Damaged packed files, one after the other, to be run under the sanitizers (sanitizer.py).

python -m tests.unit.engine.cpu.packed_fuzz FOLDER CHECKPOINT CACHE KIND SEED ROUNDS

CACHE holds the packed weights of CHECKPOINT. A damaged file is packed anew, or all that the kernels
read of it lies inside of it: arrays are copied, so that each has its own guards.
"""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from millrace.engine.attention.base import AttentionStep, Progress
from millrace.engine.attention.cpu_attention import CpuAttention
from millrace.engine.batch import Batch, Work
from millrace.engine.config_json import read_config
from millrace.engine.kernels.cpu.instruction_paths import choose_path
from millrace.engine.kernels.cpu.library import BF16, KV_KINDS, Kernels
from millrace.engine.kernels.cpu.packed_index import (
    ALIGNMENT,
    HEADER_BYTES,
    MAX_NUMBER,
    header_of,
)
from millrace.engine.kernels.cpu.packed_place import packed_path
from millrace.engine.kernels.cpu.packed_weights import (
    PackedFile,
    PackedWriter,
    open_packed,
)
from millrace.engine.kernels.cpu.tile_cache import TileCache
from millrace.engine.models import cpu_llama
from millrace.engine.models.cpu_llama import CpuLlama
from millrace.engine.models.llama_spec import LlamaSpec
from tests.unit.engine.cpu.kernel_runner import NativeRunner, make_runner

NUMBERS = (0, 1, -1, 2, 3, 31, 32, 63, 64, 65, ALIGNMENT, 1 << 31, 1 << 40, MAX_NUMBER - 1)
MORE: tuple[Any, ...] = (MAX_NUMBER, 1 << 63, 1 << 64, 0.5, None, "1", [], True)
GONE = object()
DTYPES = ("|u1", "<i2", "<f4", "<f8", "O", "", None)


class PackedAnew(Exception):
    """The file was not taken."""


def _pack_anew(writer: PackedWriter) -> None:
    raise PackedAnew


def _open(path: Path, write: object, accept: Callable[[PackedFile], None]) -> PackedFile:
    return open_packed(path, _pack_anew, accept)


def _copied(file: PackedFile, name: str) -> npt.NDArray[Any]:
    copy = np.array(_view(file, name))
    _kept.append(copy)
    return copy


_view = PackedFile.array
# As long as the mapping would be there.
_kept: list[npt.NDArray[Any]] = []


class Fuzz:
    """Opens one damaged file after the other and counts what came of them."""

    def __init__(self, kernels: Kernels, checkpoint: Path, cache: Path, kind: str) -> None:
        self._kernels, self._checkpoint, self._cache, self._kind = kernels, checkpoint, cache, kind
        self._path = packed_path(cache, checkpoint, kind, kernels.path)
        self._whole = self._path.read_bytes()
        self._spec = LlamaSpec.from_config(read_config(checkpoint))
        self.counts: Counter[str] = Counter()

    def try_whole(self) -> None:
        """The file as it is must do."""
        self._open(self._whole)
        assert self.counts["taken"] == 1

    def try_bytes(self, chance: random.Random, rounds: int) -> None:
        """Bits flipped anywhere, and files that end early or late."""
        used = len(self._whole[:HEADER_BYTES].rstrip())
        for number in range(rounds):
            damaged = bytearray(self._whole)
            low, high = ((0, used), (used, HEADER_BYTES), (HEADER_BYTES, len(damaged)))[number % 3]
            for _ in range(chance.choice((1, 1, 2, 50))):
                damaged[chance.randrange(low, high)] ^= 1 << chance.randrange(8)
            before = self.counts["taken"]
            self._open(bytes(damaged))
            # What is damaged behind the header is numbers; they are wrong, and nothing else is.
            assert (self.counts["taken"] > before) == (number % 3 == 2)
        for _ in range(rounds // 4):
            self._open(self._whole[: chance.randrange(len(self._whole))])
            self._open(self._whole + bytes(chance.choice((1, ALIGNMENT, 1 << 20))))

    def try_index(self, chance: random.Random, rounds: int) -> None:
        """An index with a right checksum that says something else."""
        text = self._whole[:HEADER_BYTES].partition(b"\n")[2]
        changes = _changes(json.loads(text))
        for change in chance.sample(changes, min(len(changes), 4 * rounds)):
            self._open_index(text, [change])
        for _ in range(rounds):
            self._open_index(text, chance.sample(changes, chance.randrange(2, 5)))

    def _open_index(self, text: bytes, changes: list[tuple[tuple[Any, ...], Any]]) -> None:
        index = json.loads(text)
        for place, value in changes:
            _change(index, place, value)
        self._open(header_of(json.dumps(index)) + self._whole[HEADER_BYTES:])

    def _open(self, content: bytes) -> None:
        # A new file each time, as writers make it: the old one may still be mapped.
        self._path.unlink(missing_ok=True)
        self._path.write_bytes(content)
        _kept.clear()
        try:
            model = CpuLlama(
                self._checkpoint, self._spec, self._kernels, self._kind, self._cache, print
            )
        except PackedAnew:
            self.counts["packed anew"] += 1
            return
        self.counts["taken"] += 1
        self._run(model)

    def _run(self, model: CpuLlama) -> None:
        kind = KV_KINDS["float32"] if self._kind == "float32" else BF16
        cache = TileCache(self._kernels, model.layers, 3, 32, kind)
        attention = CpuAttention(cache)
        batch = _batch(self._spec.vocab_size)
        step = AttentionStep(attention, attention.prepare(batch), Progress())
        model.forward(batch, step)


def _batch(vocab: int) -> Batch:
    """The highest and the lowest token id, in one row of 33 tokens and one of one token."""
    ids = np.full(34, vocab - 1, np.int64)
    ids[::2] = 0
    numbers = [[0, *range(33)], [0, 33], [1, 33], [0, 1, 34]]
    positions, samples, contexts, starts = (np.array(each, np.int64) for each in numbers)
    return Batch(
        # Of the rows only their number counts here.
        work=cast("tuple[Work, ...]", (None, None)),
        num_decode_rows=1,
        input_ids=ids,
        positions=positions,
        slot_mapping=positions,
        sample_indices=samples,
        wants_logits=np.ones(2, np.uint8),
        block_tables=np.array([[0, 0], [1, 2]], np.int64),
        query_lens=contexts,
        context_lens=contexts,
        cu_seqlens_q=starts,
        block_size=32,
    )


def _changes(index: Any) -> list[tuple[tuple[Any, ...], Any]]:
    """Every leaf of the index with every value it might have."""
    found: list[tuple[tuple[Any, ...], Any]] = []

    def visit(node: Any, place: tuple[Any, ...]) -> None:
        if isinstance(node, dict | list):
            for key in node if isinstance(node, dict) else range(len(node)):
                visit(node[key], (*place, key))
            others: tuple[Any, ...] = (None, [], {})
            found.extend((place, value) for value in others)
            found.append((place, GONE))
        elif isinstance(node, str):
            found.extend((place, value) for value in DTYPES)
        else:
            near = (node - 1, node + 1, 2 * node, node + ALIGNMENT, node // 2)
            found.extend((place, value) for value in (*near, *NUMBERS, *MORE))

    visit(index, ())
    return [(place, value) for place, value in found if place]


def _change(index: Any, place: tuple[Any, ...], value: Any) -> None:
    """Places that an earlier change took away stay so."""
    try:
        for key in place[:-1]:
            index = index[key]
        if value is GONE:
            del index[place[-1]]
        else:
            index[place[-1]] = value
    except (KeyError, IndexError, TypeError):
        return


def main(folder: Path, checkpoint: Path, cache: Path, kind: str, seed: int, rounds: int) -> None:
    """Prints how many files were taken and how many were not."""
    path = choose_path("auto")
    assert path is not None
    runner = make_runner(path.name, folder)
    assert isinstance(runner, NativeRunner)
    fuzz = Fuzz(runner.kernels(), checkpoint, cache, kind)
    chance = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PackedFile, "array", _copied)
        patch.setattr(cpu_llama, "open_packed", _open)
        fuzz.try_whole()
        fuzz.try_bytes(chance, rounds)
        fuzz.try_index(chance, rounds)
    print(json.dumps(fuzz.counts))


if __name__ == "__main__":
    folder, checkpoint, cache = map(Path, sys.argv[1:4])
    main(folder, checkpoint, cache, sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
