"""Calls of the kernels with all arguments right, and every place in them that could be wrong."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.core.sampling import SamplingSpec
from millrace.engine.kernels.cpu.drawer import draw_struct
from millrace.engine.kernels.cpu.library import (
    BF16,
    F32,
    INT4,
    INT8,
    DrawStruct,
    HeadsStruct,
    OutputStruct,
    address,
    floats,
    padded_columns,
)
from millrace.engine.sampler.drawer import DrawRequest
from tests.unit.engine.cpu.decoder_calls import Decoder, batch_of
from tests.unit.engine.cpu.kernel_calls import Cache, Shape, pack
from tests.unit.engine.cpu.kernel_runner import TEAM, KernelRunner

Array = npt.NDArray[Any]

# Arguments that say how much memory there is. Nobody can check a claim of more.
CLAIMS = frozenset(
    ("count", "bytes", "embedding_bytes", "num_source", "num_in", "num_out", "num_wanted")
    + ("num_logits", "num_likeliest", "num_kv", "num_layers", "num_draws")
)
FAR = (
    31,
    32,
    33,
    255,
    256,
    2**15,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**60,
    2**62,
    2**63 - 1,
    -(2**63),
)
REALS = (math.nan, math.inf, -math.inf, -1.0, 0.0, 2.0, 1e308, -1e308, 5e-324)
# Addresses of single bytes are never misaligned.
BYTES = frozenset({"wants_logits"})


@dataclass(frozen=True)
class Spot:
    """One number or address among the arguments."""

    name: str
    kind: str  # "number", "claim", "address" or "real"
    read: Callable[[], Any]
    write: Callable[[Any], None]

    @contextmanager
    def set_to(self, value: Any) -> Iterator[None]:
        """Another value for a while."""
        before = self.read()
        self.write(value)
        try:
            yield
        finally:
            self.write(before)

    def wrong_values(self) -> list[Any]:
        """What it might be by a fault somewhere; a claim only gets less."""
        value = self.read()
        if self.kind == "address":
            is_bytes = self.name.rpartition(".")[2] in BYTES
            place = value.ctypes.data if isinstance(value, np.ndarray) else value
            return [None, *([place + 1] if isinstance(place, int) and not is_bytes else [])]
        if self.kind == "real":
            return [value for value in REALS if value != self.read()]
        near = (0, 1, -1, value - 1, value + 1, 2 * value, -value, value // 2)
        found = {number for number in (*near, *FAR) if -(2**63) <= number < 2**63}
        return sorted(found - {value} if self.kind == "number" else {n for n in found if n < value})


@dataclass
class Call:
    """A function of the kernels with arguments as `KernelRunner.call` takes them.

    `names` are those of the arguments, `arrays` the numbers that structures point to, by name, and
    `structs` structures that others point to. `memory` is all that has to stay.
    """

    function: str
    names: str
    args: list[Any]
    structs: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)
    memory: Sequence[Any] = ()

    def run(self, runner: KernelRunner) -> int:
        """The code that comes back."""
        return runner.call(self.function, *self.args, memory=self.memory)

    def spots(self) -> Iterator[Spot]:
        """All that could be wrong."""
        for index, name in enumerate(self.names.split()):
            arg = self.args[index]
            yield self._argument(name, index)
            if isinstance(arg, ctypes.Structure | ctypes.Array):
                yield from _struct_spots(name, arg)
        for name, struct in self.structs.items():
            yield from _struct_spots(name, struct)
        for name, array in self.arrays.items():
            for place in range(array.size):
                yield _element(f"{name}[{place}]", array.reshape(-1), place)

    def spot(self, name: str) -> Spot:
        """The one of this name."""
        return next(spot for spot in self.spots() if spot.name == name)

    def _argument(self, name: str, index: int) -> Spot:
        def write(value: Any) -> None:
            self.args[index] = value

        is_address = not isinstance(self.args[index], int)
        kind = "address" if is_address else "claim" if name in CLAIMS else "number"
        return Spot(name, kind, lambda: self.args[index], write)


def _struct_spots(prefix: str, struct: Any) -> Iterator[Spot]:
    if isinstance(struct, ctypes.Array):
        for index, one in enumerate(struct):
            yield from _struct_spots(f"{prefix}[{index}]", one)
        return
    for name, kind in struct._fields_:
        if issubclass(kind, ctypes.Structure):
            yield from _struct_spots(f"{prefix}.{name}", getattr(struct, name))
        else:
            yield _field(f"{prefix}.{name}", struct, name, kind)


def _field(path: str, struct: Any, name: str, kind: Any) -> Spot:
    what = "claim" if name in CLAIMS else "number"
    if kind is ctypes.c_double:
        what = "real"
    if kind is ctypes.c_void_p or issubclass(kind, ctypes._Pointer):
        what = "address"
    read: Callable[[], Any] = lambda: getattr(struct, name)  # noqa: E731
    return Spot(path, what, read, lambda value: setattr(struct, name, value))


def _element(path: str, array: Array, place: int) -> Spot:
    def write(value: int) -> None:
        array[place] = value

    return Spot(path, "number", lambda: int(array[place]), write)


def pack_call(rng: np.random.Generator, runner: KernelRunner, kind: int) -> Call:
    """A matrix into panels."""
    weight = rng.standard_normal((33, 70)).astype(np.float32)
    panels = np.empty(runner.call("mr_panel_bytes", kind, 33, 70), np.uint8)
    args = [kind, weight, weight.size, 33, 70, panels, panels.size]
    return Call("mr_pack", "kind source num_source columns k panels bytes", args)


def multiply_call(rng: np.random.Generator, runner: KernelRunner, kind: int) -> Call:
    """Five rows times a matrix with a bias."""
    weight = rng.standard_normal((33, 70)).astype(np.float32)
    packed = pack(runner, kind, weight, rng.standard_normal(33).astype(np.float32))
    x = rng.standard_normal((5, 70)).astype(np.float32)
    out = np.empty((5, 64), np.float32)
    args = [TEAM, packed.struct, x, x.size, 5, out, out.size]
    return Call("mr_multiply", "team matrix in num_in rows out num_out", args, memory=packed.memory)


def attend_call(rng: np.random.Generator, runner: KernelRunner, kind: int) -> Call:
    """Three rows, one of them decoding, with all that a layer may have."""
    shape = Shape(6, 2, 20, 33, window=40, softcap=9.0)
    shape.sinks = rng.standard_normal(6).astype(np.float32)
    cache = Cache(runner, kind, shape, rng, num_blocks=9, tiles_per_block=2)
    lengths = [70, 40, 3]
    drawn = [
        [rng.standard_normal((length, *size)).astype(np.float32) for size in shape.sizes]
        for length in lengths
    ]
    rows = [cache.add(*one) for one in drawn]
    cache.attend(*zip(rows, (69, 10, 0), strict=True))
    batch, memory = cache.batch([(rows[0], 1), (rows[1], 30), (rows[2], 3)])
    tokens = [
        np.concatenate([one[69:], two[10:], three]) for one, two, three in zip(*drawn, strict=True)
    ]
    out = np.empty((34, 6, 33), np.float32)
    heads = HeadsStruct(*map(floats, tokens), address(out), out.size)
    names = ("positions", "cu_seqlens_q", "context_lens", "block_tables")
    return Call(
        "mr_attend",
        "team kv how batch heads",
        [TEAM, cache.struct, shape.struct, batch, heads],
        arrays=dict(zip(names, memory, strict=True)),
        memory=[*memory, *tokens, out, shape.sinks, cache],
    )


def run_call(
    rng: np.random.Generator, runner: KernelRunner, kinds: tuple[int, int], has_biases: bool
) -> Call:
    """A step of three rows, two of which sample."""
    decoder = Decoder(runner, rng, *kinds, has_biases=has_biases, num_blocks=9)
    texts = [decoder.add(rng.integers(0, decoder.sizes.vocab, length)) for length in (70, 40, 3)]
    decoder.run(*zip(texts, (69, 10, 0), strict=True))
    batch, memory = batch_of([(texts[0], 1), (texts[1], 30), (texts[2], 3)])
    samples = np.array([0, 33], np.int64)
    batch.num_samples, batch.sample_indices.count = 2, 2
    batch.sample_indices.data = address(samples)
    wanted = np.array([1, 0], np.uint8)
    logits = np.empty((2, padded_columns(decoder.sizes.vocab)), np.float32)
    likeliest, progress = np.empty(2, np.int64), np.zeros(1, np.int64)
    out = OutputStruct(
        address(wanted), 2, address(logits), logits.size, address(likeliest), 2, address(progress)
    )
    names = ("input_ids", "positions", "cu_seqlens_q", "context_lens", "block_tables")
    arrays = {**dict(zip(names, memory, strict=False)), "sample_indices": samples}
    return Call(
        "mr_model_run",
        "model team kv num_kv batch out",
        [decoder.structs, TEAM, decoder.caches, len(decoder.caches), batch, out],
        structs={"layers": decoder.layer_structs},
        arrays=arrays,
        memory=[*memory, *arrays.values(), wanted, logits, likeliest, progress, decoder],
    )


def draw_call(rng: np.random.Generator) -> Call:
    """Two draws, one of them from all that can be cut off."""
    logits = rng.standard_normal((3, 5003)).astype(np.float32)
    specs = [SamplingSpec(), SamplingSpec(temperature=0.8, top_k=40, top_p=0.9, min_p=0.01)]
    requests = [DrawRequest(row, spec, 7, 0) for row, spec in zip((0, 2), specs, strict=True)]
    draws = (DrawStruct * 2)(*map(draw_struct, requests))
    tokens = np.empty(2, np.int64)
    return Call(
        "mr_draw_tokens",
        "team logits num_logits stride vocab draws num_draws tokens",
        [TEAM, logits, logits.size, 5003, 5000, draws, 2, tokens],
    )


def size_calls() -> list[Call]:
    """Those that only say how large something is."""
    return [
        Call("mr_tile_bytes", "kind key_dim value_dim", [INT8, 20, 33]),
        Call("mr_panel_bytes", "kind columns k", [INT4, 33, 70]),
    ]


def all_calls(rng: np.random.Generator, runner: KernelRunner) -> Iterator[Call]:
    """Every function that takes more than a handle, and every kind of weights and K/V."""
    yield from size_calls()
    for kind in (F32, BF16, INT8, INT4):
        yield pack_call(rng, runner, kind)
        yield multiply_call(rng, runner, kind)
    for kind in (F32, BF16, INT8):
        yield attend_call(rng, runner, kind)
    for kinds in ((F32, F32), (BF16, INT8), (INT8, BF16), (INT4, BF16)):
        yield run_call(rng, runner, kinds, has_biases=kinds[0] != BF16)
    yield draw_call(rng)
