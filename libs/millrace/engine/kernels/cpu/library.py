"""The C interface of the kernels (src/millrace_cpu.h), typed. Arrays are numpy's, or addresses."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.core.errors import ConfigError, InternalError, UnsupportedModel

from .loadable import explain_failure

ABI = 4
F32, BF16, INT8, INT4 = 0, 1, 2, 3
KV_KINDS = {"float32": F32, "bfloat16": BF16, "int8": INT8}
KINDS = {**KV_KINDS, "int4": INT4}
TILE_TOKENS = 32
PANEL_COLUMNS = 32
ALIGN_K = 64

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

# What functions return; the last two have a reason.
OUT_OF_MEMORY, UNSUPPORTED, INVALID = 1, 2, 3


class FloatsStruct(ctypes.Structure):
    """mr_floats"""

    _fields_ = (("data", c_void_p), ("count", c_int64))


class NumbersStruct(ctypes.Structure):
    """mr_numbers"""

    _fields_ = (("data", c_void_p), ("count", c_int64))


class MatrixStruct(ctypes.Structure):
    """mr_matrix"""

    _fields_ = (
        ("panels", c_void_p),
        ("bytes", c_int64),
        ("bias", FloatsStruct),
        ("kind", c_int64),
        ("columns", c_int64),
        ("k", c_int64),
    )


class LayerStruct(ctypes.Structure):
    """mr_layer"""

    _fields_ = (
        ("input_norm", FloatsStruct),
        ("qkv", MatrixStruct),
        ("q_norm", FloatsStruct),
        ("k_norm", FloatsStruct),
        ("o", MatrixStruct),
        ("post_norm", FloatsStruct),
        ("gate_up", MatrixStruct),
        ("down", MatrixStruct),
        ("window", c_int64),
    )


class ModelStruct(ctypes.Structure):
    """mr_model"""

    _fields_ = (
        ("num_layers", c_int64),
        ("hidden", c_int64),
        ("intermediate", c_int64),
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_dim", c_int64),
        ("vocab", c_int64),
        ("embedding_kind", c_int64),
        ("norm_eps", c_double),
        ("embedding", c_void_p),
        ("embedding_bytes", c_int64),
        ("frequencies", FloatsStruct),
        ("final_norm", FloatsStruct),
        ("head", MatrixStruct),
        ("layers", POINTER(LayerStruct)),
    )


class KvStruct(ctypes.Structure):
    """mr_kv"""

    _fields_ = (
        ("data", c_void_p),
        ("bytes", c_int64),
        ("kind", c_int64),
        ("num_kv_heads", c_int64),
        ("key_dim", c_int64),
        ("value_dim", c_int64),
    )


class BatchStruct(ctypes.Structure):
    """mr_batch"""

    _fields_ = (
        ("num_rows", c_int64),
        ("num_tokens", c_int64),
        ("num_samples", c_int64),
        ("table_width", c_int64),
        ("tiles_per_block", c_int64),
        ("input_ids", NumbersStruct),
        ("positions", NumbersStruct),
        ("cu_seqlens_q", NumbersStruct),
        ("context_lens", NumbersStruct),
        ("block_tables", NumbersStruct),
        ("sample_indices", NumbersStruct),
    )


class AttentionStruct(ctypes.Structure):
    """mr_attention"""

    _fields_ = (
        ("num_heads", c_int64),
        ("scale", c_double),
        ("window", c_int64),
        ("softcap", c_double),
        ("sinks", FloatsStruct),
    )


class HeadsStruct(ctypes.Structure):
    """mr_heads"""

    _fields_ = (
        ("q", FloatsStruct),
        ("k", FloatsStruct),
        ("v", FloatsStruct),
        ("out", c_void_p),
        ("num_out", c_int64),
    )


class OutputStruct(ctypes.Structure):
    """mr_output"""

    _fields_ = (
        ("wants_logits", c_void_p),
        ("num_wanted", c_int64),
        ("logits", c_void_p),
        ("num_logits", c_int64),
        ("likeliest", c_void_p),
        ("num_likeliest", c_int64),
        ("progress", c_void_p),
    )


class DrawStruct(ctypes.Structure):
    """mr_draw"""

    _fields_ = (
        ("row", c_int64),
        ("seed", c_uint64),
        ("position", c_int64),
        ("choice", c_int64),
        ("top_k", c_int64),
        ("temperature", c_double),
        ("top_p", c_double),
        ("min_p", c_double),
    )


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "mr_abi": (c_int64, []),
    "mr_reason": (c_char_p, []),
    "mr_team_create": (c_int64, [c_int64, c_void_p]),
    "mr_team_destroy": (None, [c_void_p]),
    "mr_tile_bytes": (c_int64, [c_int64] * 3),
    "mr_panel_bytes": (c_int64, [c_int64] * 3),
    "mr_pack": (c_int64, [c_int64, c_void_p, *[c_int64] * 3, c_void_p, c_int64]),
    "mr_multiply": (
        c_int64,
        [c_void_p, POINTER(MatrixStruct), c_void_p, c_int64, c_int64, c_void_p, c_int64],
    ),
    "mr_attend": (
        c_int64,
        [
            c_void_p,
            POINTER(KvStruct),
            POINTER(AttentionStruct),
            POINTER(BatchStruct),
            POINTER(HeadsStruct),
        ],
    ),
    "mr_model_create": (c_int64, [POINTER(ModelStruct), c_void_p]),
    "mr_model_destroy": (None, [c_void_p]),
    "mr_model_run": (
        c_int64,
        [
            c_void_p,
            c_void_p,
            POINTER(KvStruct),
            c_int64,
            POINTER(BatchStruct),
            POINTER(OutputStruct),
        ],
    ),
    "mr_model_sound_rows": (c_int64, [c_void_p, c_void_p, c_int64]),
    "mr_draw_tokens": (
        c_int64,
        [c_void_p, c_void_p, *[c_int64] * 3, POINTER(DrawStruct), c_int64, c_void_p],
    ),
}


class Kernels:
    """One loaded library and its team of threads. Calls release the GIL; one at a time.

    Raises `ConfigError` where it cannot be loaded or the system gives no such team.
    """

    def __init__(self, library: Path, path: str, num_threads: int) -> None:
        self.path = path
        try:
            self.c: Any = ctypes.CDLL(str(library))
        except OSError as error:
            reason = explain_failure(library, error)
            raise ConfigError(f"cannot load the CPU kernels: {reason}", field="backend") from error
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(self.c, name)
            function.restype, function.argtypes = result, arguments
        if self.c.mr_abi() != ABI:
            raise ConfigError(f"{library} is of another version", field="backend")
        self.team: int | None = None
        team = c_void_p()
        code = self.c.mr_team_create(num_threads, ctypes.byref(team))
        if code == INVALID:
            raise ConfigError(self.reason, field="num_threads")
        if code:
            raise ConfigError(
                f"the system gives no {num_threads} threads or no registers for {self.path}",
                field="num_threads",
            )
        self.team = team.value

    def __del__(self) -> None:
        if getattr(self, "team", None):
            self.c.mr_team_destroy(self.team)
            self.team = None

    @property
    def reason(self) -> str:
        """What the last refused call of this thread was refused for."""
        return str(self.c.mr_reason().decode())

    def check(self, code: int) -> None:
        """Raises what an error code means, with the argument, its value and what it must be."""
        if code == OUT_OF_MEMORY:
            raise MemoryError("no memory for the buffers of this step")
        if code == UNSUPPORTED:
            raise UnsupportedModel(self.reason)
        if code == INVALID:
            raise InternalError(f"the CPU kernels refuse a call: {self.reason}")

    def tile_bytes(self, kind: int, key_dim: int, value_dim: int) -> int:
        """Bytes of 32 tokens of one K/V head."""
        return self._size(self.c.mr_tile_bytes(kind, key_dim, value_dim))

    def panel_bytes(self, kind: int, columns: int, k: int) -> int:
        """Bytes of a matrix [columns, k] in panels."""
        return self._size(self.c.mr_panel_bytes(kind, columns, k))

    def _size(self, found: int) -> int:
        self.check(-min(found, 0))
        return found


def floats(array: npt.NDArray[Any] | None) -> FloatsStruct:
    """All numbers of a float32 array, or none. Raises `ValueError` for another kind of array."""
    return FloatsStruct() if array is None else FloatsStruct(*_whole(array, np.float32))


def numbers(array: npt.NDArray[Any] | None) -> NumbersStruct:
    """All numbers of an int64 array, or none. Raises `ValueError` for another kind of array."""
    return NumbersStruct() if array is None else NumbersStruct(*_whole(array, np.int64))


def _whole(array: npt.NDArray[Any], dtype: Any) -> tuple[int, int]:
    if array.dtype != dtype or not array.flags.c_contiguous:
        raise ValueError(
            f"an array of {array.dtype}, {array.shape}, is not {dtype.__name__} in a row"
        )
    return int(array.ctypes.data), array.size


def address(array: npt.NDArray[Any] | None) -> int | None:
    """Where an array's numbers lie; None stays None."""
    return None if array is None else int(array.ctypes.data)


def padded_columns(columns: int) -> int:
    """Columns of the whole panels that hold `columns`."""
    return -(-columns // PANEL_COLUMNS) * PANEL_COLUMNS


def padded(array: FloatArray, multiple: int = ALIGN_K) -> FloatArray:
    """A copy with zeros up to a multiple."""
    out = np.zeros(-(-len(array) // multiple) * multiple, dtype=np.float32)
    out[: len(array)] = array
    return out
