"""The native route on the `cpu` backend: all layers of a step in one call of the C++ kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from millrace.core.errors import UnsupportedModel
from millrace.engine.attention.base import AttentionStep
from millrace.engine.attention.cpu_attention import CpuAttention, CpuMetadata
from millrace.engine.batch import Batch
from millrace.engine.kernels.cpu.library import (
    BF16,
    F32,
    FloatArray,
    Kernels,
    LayerStruct,
    ModelStruct,
    address,
    padded_columns,
)
from millrace.engine.kernels.cpu.packed_weights import (
    PackedFile,
    PackedWriter,
    open_packed,
    packed_path,
)
from millrace.engine.kv_cache import LayerShape

from .base import Logits
from .llama_spec import LlamaSpec
from .misfits import UNTIED

MATRICES = ("qkv", "o", "gate_up", "down")


class CpuLlama:
    """Weights and forward pass; see `Model`.

    `kind` names how matrices are stored: "float32", "bfloat16", "int8" or "int4". The packed file
    lies under `cache_dir`; `report` hears of its making, and of what is not as config.json says.
    """

    def __init__(
        self,
        model_path: Path,
        spec: LlamaSpec,
        kernels: Kernels,
        kind: str,
        cache_dir: Path,
        report: Callable[[str], None],
    ) -> None:
        self._kernels = kernels
        shape = LayerShape(spec.num_kv_heads, spec.head_dim, spec.head_dim)
        self.layers = (shape,) * spec.num_layers
        self.vocab_size = spec.vocab_size

        def write(writer: PackedWriter) -> None:
            # Takes torch, which takes a second to import and memory to keep.
            from .cpu_llama_packing import pack_llama

            report(f"packing the weights as {kind} for {kernels.path}")
            pack_llama(writer, model_path, spec, kernels, kind, report)

        packed = packed_path(cache_dir, model_path, kind, kernels.path)
        self._file = open_packed(packed, write)
        if spec.tied and not self._file.extra["is_tied"]:
            report(UNTIED)
        self.num_parameters = int(self._file.extra["num_parameters"])
        self.weight_bytes = int(self._file.extra["weight_bytes"])
        self._padded_vocab = padded_columns(spec.vocab_size)
        self._layers = (LayerStruct * spec.num_layers)(
            *(_layer_struct(self._file, index, spec) for index in range(spec.num_layers))
        )
        self._struct = self._model_struct(spec)
        self._model = kernels.c.mr_model_create(ctypes.byref(self._struct))
        if not self._model:
            raise UnsupportedModel("more than 48 query heads share a K/V head")
        self._logits: FloatArray = np.empty((0, self._padded_vocab), dtype=np.float32)

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self._kernels.c.mr_model_destroy(self._model)
            self._model = None

    def forward(self, batch: Batch, step: AttentionStep) -> Logits:
        """See `Model.forward`; logits of the rows that want them, valid until the next call."""
        attention, metadata = step.backend, step.metadata
        assert isinstance(attention, CpuAttention) and isinstance(metadata, CpuMetadata)
        wants = batch.wants_logits
        if len(wants) > len(self._logits):
            self._logits = np.empty((len(wants), self._padded_vocab), dtype=np.float32)
        likeliest: npt.NDArray[np.int64] = np.empty(len(wants), dtype=np.int64)
        code = self._kernels.c.mr_model_run(
            self._model,
            self._kernels.team,
            attention.cache.structs,
            ctypes.byref(metadata.struct),
            address(wants),
            address(self._logits),
            address(likeliest),
            step.progress.address,
        )
        self._kernels.check(code)
        return Logits(
            self._logits[: len(wants), : self.vocab_size], likeliest, self._sound_rows(batch)
        )

    def _sound_rows(self, batch: Batch) -> npt.NDArray[np.bool_]:
        is_sound: npt.NDArray[np.bool_] = np.empty(len(batch.work), dtype=np.bool_)
        code = self._kernels.c.mr_model_sound_rows(self._model, address(is_sound), len(is_sound))
        self._kernels.check(code)
        return is_sound

    def _model_struct(self, spec: LlamaSpec) -> ModelStruct:
        embedding = self._file.array("embedding")
        return ModelStruct(
            num_layers=spec.num_layers,
            hidden=spec.hidden_size,
            intermediate=int(self._file.extra["intermediate"]),
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            vocab=spec.vocab_size,
            embedding_kind=F32 if embedding.dtype == np.float32 else BF16,
            norm_eps=spec.norm_eps,
            embedding=address(embedding),
            frequencies=address(self._file.array("frequencies")),
            final_norm=address(self._file.array("final_norm")),
            head=self._file.matrix("head").struct,
            layers=self._layers,
        )


def _layer_struct(file: PackedFile, index: int, spec: LlamaSpec) -> LayerStruct:
    matrices = {name: file.matrix(f"{index}.{name}").struct for name in MATRICES}
    return LayerStruct(
        input_norm=address(file.array(f"{index}.input_norm")),
        post_norm=address(file.array(f"{index}.post_norm")),
        q_norm=address(file.try_array(f"{index}.q_norm")),
        k_norm=address(file.try_array(f"{index}.k_norm")),
        window=spec.windows[index] or 0,
        **matrices,
    )
