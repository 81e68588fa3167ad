"""How much memory a model needs, from its config.json and safetensors headers alone.

Per sequence the engine keeps K and V of every token; a step adds working memory that depends on
how many tokens and rows it takes. The counts follow the engine's native route, over the CPU kernels
where they run here, else over `torch`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.core.errors import ConfigError
from millrace.core.table import table_lines
from millrace.engine.tensor_headers import tensor_headers

from .byte_size import format_bytes
from .entry import ModelEntry, read_config
from .model_shape import DTYPE_BYTES, QUANTIZED, STORED_DTYPES, shape_of

REPORTED_DTYPES = ("float32", "bfloat16", "int8", "int4")
SHORT_SEQUENCE = 2048
# Python, torch, transformers and the service around them, before any weight; measured on Linux
# x86_64 with CPU builds of torch 2.13.
RUNTIME_BYTES = 380_000_000
# The same where the kernels serve the native route, without torch and transformers.
KERNEL_RUNTIME_BYTES = 60_000_000
# torch without transformers, which packs them; measured likewise.
PACKING_RUNTIME_BYTES = 150_000_000
_BLOCK_TOKENS = 32
_SMALLEST_LEN = 256
_DEFAULT_LEN = 2048


@dataclass(frozen=True, slots=True)
class DtypeFit:
    """One line of the table: everything in bytes, or in sequences."""

    dtype: str
    weight_bytes: int
    activation_bytes: int
    runtime_bytes: int
    kv_bytes_per_token: int
    workspace_bytes_per_token: int
    merged_bytes: int
    loading_bytes: int
    packing_bytes: int
    memory_bytes: int
    max_model_len: int

    @property
    def fixed_bytes(self) -> int:
        """Needed before the first sequence."""
        return self.weight_bytes + self.activation_bytes + self.runtime_bytes

    @property
    def needed_bytes(self) -> int:
        """Needed for one sequence of full length."""
        return self.fixed_bytes + self.bytes_per_sequence(self.max_model_len)

    @property
    def peak_resident_bytes(self) -> int:
        """The most the system shows for the process with one sequence of full length.

        More than `needed_bytes` by pages of the mapped checkpoint that it takes back at will:
        those merged into other matrices, or, where the dtype is another, all of them at loading.
        """
        loading = self.runtime_bytes + self.weight_bytes + self.loading_bytes
        return max(loading, self.needed_bytes + self.merged_bytes)

    @property
    def fits(self) -> bool:
        """True where at least one sequence of full length can run."""
        return self.needed_bytes <= self.memory_bytes

    def bytes_per_sequence(self, length: int) -> int:
        """K, V and working memory of a sequence, in whole blocks."""
        tokens = -(-length // _BLOCK_TOKENS) * _BLOCK_TOKENS
        return tokens * (self.kv_bytes_per_token + self.workspace_bytes_per_token)

    def num_sequences(self, length: int) -> int:
        """How many sequences of `length` tokens the memory holds at once."""
        return max(0, (self.memory_bytes - self.fixed_bytes) // self.bytes_per_sequence(length))


@dataclass(frozen=True, slots=True)
class FitReport:
    """What a model needs on this much memory, for each dtype, and for the one asked for."""

    model: str
    memory_bytes: int
    max_model_len: int
    max_num_seqs: int
    num_workers: int
    dtype: str
    rows: tuple[DtypeFit, ...]
    asked: DtypeFit
    suggestion: str

    @property
    def fits(self) -> bool:
        """True where the settings asked for can run."""
        return self.asked.fits

    def require(self) -> None:
        """Raises ConfigError with the table and the nearest setting where it does not fit."""
        if not self.fits:
            raise ConfigError("\n".join((*self.lines(), self.suggestion)), field="model")

    def to_json(self) -> dict[str, Any]:
        """The same figures for machines."""
        return {
            "model": self.model,
            "memory_bytes": self.memory_bytes,
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "num_workers": self.num_workers,
            "dtype": self.dtype,
            "fits": self.fits,
            "suggestion": self.suggestion,
            "dtypes": [_row_json(row) for row in self.rows],
        }

    @property
    def title(self) -> str:
        """Which model, in how much memory."""
        share = f", {self.num_workers} workers" if self.num_workers > 1 else ""
        return f"{self.model} in {format_bytes(self.memory_bytes)}{share}"

    @property
    def header(self) -> tuple[str, ...]:
        """Of the table for people."""
        full, short = str(self.max_model_len), str(SHORT_SEQUENCE)
        return (
            "dtype",
            "weights",
            "work",
            "KV/token",
            "needed",
            "peak",
            full,
            short,
        )

    def lines(self) -> list[str]:
        """Everything for people, but the suggestion."""
        table = table_lines(self.header, self.cells(), right=self.header[1:])
        return [self.title, *table, *self.notes()]

    def cells(self) -> list[tuple[str, ...]]:
        """A line of the table for each number type."""
        return [
            (
                row.dtype,
                format_bytes(row.weight_bytes),
                format_bytes(row.activation_bytes + row.runtime_bytes),
                format_bytes(row.kv_bytes_per_token),
                format_bytes(row.needed_bytes),
                format_bytes(row.peak_resident_bytes),
                str(row.num_sequences(self.max_model_len)),
                str(row.num_sequences(SHORT_SEQUENCE)),
            )
            for row in self.rows
        ]

    def notes(self) -> list[str]:
        """What the columns mean, and what comes before."""
        packing = self.asked.packing_bytes
        return [
            "work: activations and the runtime's own; needed: memory with one sequence of "
            f"{self.max_model_len} tokens; peak: with pages of the file too, which the system can "
            "drop",
            f"{self.max_model_len}, {SHORT_SEQUENCE}: sequences of so many tokens at once",
            *(
                [f"packing the weights, once and before: {format_bytes(packing)}"]
                if packing
                else []
            ),
        ]


def _row_json(row: DtypeFit) -> dict[str, Any]:
    return {
        "dtype": row.dtype,
        "weight_bytes": row.weight_bytes,
        "activation_bytes": row.activation_bytes,
        "runtime_bytes": row.runtime_bytes,
        "kv_bytes_per_token": row.kv_bytes_per_token,
        "workspace_bytes_per_token": row.workspace_bytes_per_token,
        "needed_bytes": row.needed_bytes,
        "peak_resident_bytes": row.peak_resident_bytes,
        "packing_bytes": row.packing_bytes,
        "num_full_sequences": row.num_sequences(row.max_model_len),
        "num_2048_sequences": row.num_sequences(SHORT_SEQUENCE),
        "fits": row.fits,
    }


def check_fit(
    entry: ModelEntry,
    memory_bytes: int = 0,
    dtype: str = "auto",
    max_num_seqs: int = 64,
    *,
    max_model_len: int = 0,
    max_num_batched_tokens: int = 2048,
    num_workers: int = 1,
    quantization: str = "none",
    has_kernels: bool | None = None,
) -> FitReport:
    """What `entry` needs, against `memory_bytes` (0: what is available now) for all workers.

    `has_kernels` says whether the CPU kernels serve it; None: where they run on this machine.
    Raises UnsupportedModel where config.json lacks the numbers, ConfigError for an unknown dtype.
    """
    config = read_config(entry.path)
    tensors = tensor_headers(entry.path)
    shape = shape_of(config, tensors)
    stored_bytes = sum(tensor.num_bytes for tensor in tensors)
    is_native = entry.route == "native"
    has_kernels = _kernels_run_here() if has_kernels is None else has_kernels
    on_kernels = is_native and has_kernels
    memory_bytes = memory_bytes or _available_memory_bytes()
    length = max_model_len or entry.max_model_len or _DEFAULT_LEN

    def is_stored_as(dtype: str) -> bool:
        return all(tensor.dtype == STORED_DTYPES.get(dtype) for tensor in tensors)

    def is_merged(dtype: str) -> bool:
        return is_native and not on_kernels and is_stored_as(dtype)

    def row(dtype: str, length: int) -> DtypeFit:
        return DtypeFit(
            dtype=dtype,
            weight_bytes=shape.weight_bytes(dtype)
            + (shape.packed_head_bytes(dtype) if has_kernels and not is_native else 0),
            activation_bytes=(
                shape.kernel_activation_bytes if on_kernels else shape.activation_bytes
            )(
                dtype,
                num_tokens=max_num_batched_tokens,
                num_rows=max_num_seqs,
                context_len=length,
            ),
            runtime_bytes=KERNEL_RUNTIME_BYTES if on_kernels else RUNTIME_BYTES,
            kv_bytes_per_token=shape.kv_bytes_per_token(dtype),
            workspace_bytes_per_token=0 if on_kernels else shape.workspace_bytes_per_token(dtype),
            merged_bytes=shape.merged_bytes(dtype) if is_merged(dtype) else 0,
            loading_bytes=0 if on_kernels or is_stored_as(dtype) else stored_bytes,
            packing_bytes=PACKING_RUNTIME_BYTES + shape.packing_bytes(dtype) if on_kernels else 0,
            memory_bytes=memory_bytes // num_workers,
            max_model_len=length,
        )

    dtype = _resolved_dtype(dtype, config, has_kernels) if quantization == "none" else quantization
    asked = row(dtype, length)
    return FitReport(
        model=entry.name,
        memory_bytes=memory_bytes,
        max_model_len=length,
        max_num_seqs=max_num_seqs,
        num_workers=num_workers,
        dtype=dtype,
        rows=tuple(row(name, length) for name in REPORTED_DTYPES),
        asked=asked,
        suggestion="" if asked.fits else _suggestion(asked, num_workers, row),
    )


def _suggestion(asked: DtypeFit, num_workers: int, row: Any) -> str:
    """The nearest setting that fits, in the order of what it costs the user."""
    dtypes = [asked.dtype] if DTYPE_BYTES[asked.dtype] == 2 else [asked.dtype, "bfloat16"]
    for dtype in reversed(dtypes):
        if dtype != asked.dtype and row(dtype, asked.max_model_len).fits:
            return f"fits with dtype {dtype} (--dtype {dtype}, or MILLRACE_WORKER_DTYPE={dtype})"
    done = QUANTIZED.index(asked.dtype) + 1 if asked.dtype in QUANTIZED else 0
    for kind in QUANTIZED[done:]:
        if row(kind, asked.max_model_len).fits:
            settings = f"--quantization {kind}, or MILLRACE_WORKER_QUANTIZATION={kind}"
            cost = ", at some cost in quality" if kind == "int4" else ""
            return f"fits with {kind[-1]}-bit weights{cost} ({settings})"
    ways = [*dtypes, *QUANTIZED[done:]]
    lengths = {way: _longest_that_fits(way, asked.max_model_len, row) for way in ways}
    # The cheapest way that leaves room for an ordinary text, else the one with most room.
    useful = [way for way in ways if lengths[way] >= SHORT_SEQUENCE]
    best = useful[0] if useful else max(ways, key=lengths.__getitem__)
    if lengths[best]:
        setting = f"MILLRACE_WORKER_MAX_MODEL_LEN={lengths[best]}"
        if best != asked.dtype:
            kind = "QUANTIZATION" if best in QUANTIZED else "DTYPE"
            setting = f"MILLRACE_WORKER_{kind}={best} {setting}"
        return f"fits with sequences of up to {lengths[best]} tokens ({setting})"
    least = min(row(way, _SMALLEST_LEN).needed_bytes for way in ways) * num_workers
    workers = f" with {num_workers} workers" if num_workers > 1 else ""
    return f"no setting fits{workers}: it takes at least {format_bytes(least)} of memory"


def _longest_that_fits(dtype: str, longest: int, row: Any) -> int:
    """The longest max_model_len in steps of 256 tokens that fits; 0 where none does."""
    low, high = 0, longest // _SMALLEST_LEN
    while low < high:
        middle = (low + high + 1) // 2
        if row(dtype, middle * _SMALLEST_LEN).fits:
            low = middle
        else:
            high = middle - 1
    return low * _SMALLEST_LEN


def _available_memory_bytes() -> int:
    from millrace.engine.machine import available_memory_bytes

    return available_memory_bytes()


def _kernels_run_here() -> bool:
    from millrace.engine.kernels.cpu.load import buildable_path

    return buildable_path("auto") is not None


def _resolved_dtype(dtype: str, config: Mapping[str, Any], has_kernels: bool) -> str:
    """What the engine makes of `dtype` on this machine's CPU."""
    from millrace.engine.config import EngineConfig, resolve_config

    resolved = resolve_config(
        EngineConfig(model_path=Path(), name="", dtype=dtype),
        config,
        has_cuda=False,
        has_kernels=has_kernels,
    )
    if resolved.dtype not in DTYPE_BYTES:
        raise ConfigError(f"dtype {dtype!r} is not one of {', '.join(DTYPE_BYTES)}", field="dtype")
    return resolved.dtype
