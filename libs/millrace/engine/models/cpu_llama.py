"""The native route on the `cpu` backend: all layers of a step in one call of the C++ kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from millrace.engine.attention.base import AttentionStep
from millrace.engine.attention.cpu_attention import CpuAttention, CpuMetadata
from millrace.engine.batch import Batch
from millrace.engine.kernels.cpu.library import (
    BF16,
    F32,
    INVALID,
    FloatArray,
    Kernels,
    LayerStruct,
    ModelStruct,
    OutputStruct,
    address,
    floats,
    padded_columns,
)
from millrace.engine.kernels.cpu.packed_place import packed_path
from millrace.engine.kernels.cpu.packed_weights import (
    PackedFile,
    PackedWriter,
    open_packed,
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

        self._model: int | None = None
        packed = packed_path(cache_dir, model_path, kind, kernels.path)
        self._file = open_packed(packed, write, lambda file: self._take(file, spec))
        if self._is_untied:
            report(UNTIED)
        self._padded_vocab = padded_columns(spec.vocab_size)
        self._logits: FloatArray = np.empty((0, self._padded_vocab), dtype=np.float32)

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self._kernels.c.mr_model_destroy(self._model)
            self._model = None

    def _take(self, file: PackedFile, spec: LlamaSpec) -> None:
        """Gives the weights to the kernels; `ValueError` or `KeyError` if `spec` wants others."""
        self.num_parameters = file.extra["num_parameters"]
        self.weight_bytes = file.extra["weight_bytes"]
        self._is_untied = spec.tied and not file.extra["is_tied"]
        embedding = file.array("embedding")
        layers = [_layer_struct(file, index, spec) for index in range(spec.num_layers)]
        struct = ModelStruct(
            num_layers=len(layers),
            hidden=spec.hidden_size,
            intermediate=spec.intermediate_size,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            vocab=spec.vocab_size,
            embedding_kind=F32 if embedding.dtype == np.float32 else BF16,
            norm_eps=spec.norm_eps,
            embedding=address(embedding),
            embedding_bytes=embedding.nbytes,
            frequencies=floats(file.array("frequencies")),
            final_norm=floats(file.array("final_norm")),
            head=file.matrix("head").struct,
            layers=(LayerStruct * len(layers))(*layers),
        )
        model = ctypes.c_void_p()
        code = self._kernels.c.mr_model_create(ctypes.byref(struct), ctypes.byref(model))
        if code == INVALID:
            raise ValueError(self._kernels.reason)
        self._kernels.check(code)
        self._model = model.value

    def forward(self, batch: Batch, step: AttentionStep) -> Logits:
        """See `Model.forward`; logits of the rows that want them, valid until the next call."""
        attention, metadata = step.backend, step.metadata
        assert isinstance(attention, CpuAttention) and isinstance(metadata, CpuMetadata)
        wants = batch.wants_logits
        if len(wants) > len(self._logits):
            self._logits = np.empty((len(wants), self._padded_vocab), dtype=np.float32)
        likeliest: npt.NDArray[np.int64] = np.empty(len(wants), dtype=np.int64)
        out = OutputStruct(
            wants_logits=address(wants),
            num_wanted=wants.size,
            logits=address(self._logits),
            num_logits=self._logits.size,
            likeliest=address(likeliest),
            num_likeliest=likeliest.size,
            progress=step.progress.address,
        )
        code = self._kernels.c.mr_model_run(
            self._model,
            self._kernels.team,
            attention.cache.structs,
            len(attention.cache.structs),
            ctypes.byref(metadata.struct),
            ctypes.byref(out),
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


def _layer_struct(file: PackedFile, index: int, spec: LlamaSpec) -> LayerStruct:
    matrices = {name: file.matrix(f"{index}.{name}").struct for name in MATRICES}
    return LayerStruct(
        input_norm=floats(file.array(f"{index}.input_norm")),
        post_norm=floats(file.array(f"{index}.post_norm")),
        q_norm=floats(file.try_array(f"{index}.q_norm")),
        k_norm=floats(file.try_array(f"{index}.k_norm")),
        window=spec.windows[index] or 0,
        **matrices,
    )
