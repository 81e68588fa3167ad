"""The C interface of the kernels (src/millrace_cpu.h), typed. Arrays are numpy's, or addresses."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_double, c_int64, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from millrace.core.errors import ConfigError, UnsupportedModel

from .loadable import explain_failure

ABI = 3
F32, BF16, INT8, INT4 = 0, 1, 2, 3
KV_KINDS = {"float32": F32, "bfloat16": BF16, "int8": INT8}
KINDS = {**KV_KINDS, "int4": INT4}
TILE_TOKENS = 32
PANEL_COLUMNS = 32
ALIGN_K = 64

FloatArray = npt.NDArray[np.float32]

_OUT_OF_MEMORY, _UNSUPPORTED = 1, 2


class MatrixStruct(ctypes.Structure):
    """mr_matrix"""

    _fields_ = (
        ("panels", c_void_p),
        ("bias", c_void_p),
        ("kind", c_int64),
        ("columns", c_int64),
        ("k", c_int64),
    )


class LayerStruct(ctypes.Structure):
    """mr_layer"""

    _fields_ = (
        ("input_norm", c_void_p),
        ("qkv", MatrixStruct),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("o", MatrixStruct),
        ("post_norm", c_void_p),
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
        ("frequencies", c_void_p),
        ("final_norm", c_void_p),
        ("head", MatrixStruct),
        ("layers", POINTER(LayerStruct)),
    )


class KvStruct(ctypes.Structure):
    """mr_kv"""

    _fields_ = (
        ("data", c_void_p),
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
        ("input_ids", c_void_p),
        ("positions", c_void_p),
        ("cu_seqlens_q", c_void_p),
        ("context_lens", c_void_p),
        ("block_tables", c_void_p),
        ("sample_indices", c_void_p),
    )


class AttentionStruct(ctypes.Structure):
    """mr_attention"""

    _fields_ = (
        ("num_heads", c_int64),
        ("scale", c_double),
        ("window", c_int64),
        ("softcap", c_double),
        ("sinks", c_void_p),
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
    "mr_team_create": (c_void_p, [c_int64]),
    "mr_team_destroy": (None, [c_void_p]),
    "mr_tile_bytes": (c_int64, [c_int64] * 3),
    "mr_panel_bytes": (c_int64, [c_int64] * 3),
    "mr_pack": (None, [c_int64, c_void_p, c_int64, c_int64, c_void_p]),
    "mr_multiply": (c_int64, [c_void_p, POINTER(MatrixStruct), c_void_p, c_int64, c_void_p]),
    "mr_attend": (
        c_int64,
        [
            c_void_p,
            POINTER(KvStruct),
            POINTER(AttentionStruct),
            POINTER(BatchStruct),
            *[c_void_p] * 4,
        ],
    ),
    "mr_model_create": (c_void_p, [POINTER(ModelStruct)]),
    "mr_model_destroy": (None, [c_void_p]),
    "mr_model_run": (
        c_int64,
        [c_void_p, c_void_p, POINTER(KvStruct), POINTER(BatchStruct), *[c_void_p] * 4],
    ),
    "mr_model_sound_rows": (c_int64, [c_void_p, c_void_p, c_int64]),
    "mr_draw_tokens": (
        c_int64,
        [c_void_p, c_void_p, c_int64, c_int64, POINTER(DrawStruct), c_int64, c_void_p],
    ),
}


class Kernels:
    """One loaded library and its team of threads. Calls release the GIL; one at a time."""

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
        self.team = self.c.mr_team_create(num_threads)
        if not self.team:
            raise ConfigError(
                f"the system gives no {num_threads} threads or no registers for {self.path}",
                field="num_threads",
            )

    def __del__(self) -> None:
        if getattr(self, "team", None):
            self.c.mr_team_destroy(self.team)
            self.team = None

    def check(self, code: int) -> None:
        """Raises what an error code means."""
        if code == _OUT_OF_MEMORY:
            raise MemoryError("no memory for the buffers of this step")
        if code == _UNSUPPORTED:
            raise UnsupportedModel("more than 48 query heads share a K/V head")


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
