"""The native route on the `cpu` backend: all layers of a step in one call of the C++ kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from millrace.core.errors import UnsupportedModel
from millrace.engine.attention.base import AttentionStep
from millrace.engine.attention.cpu_attention import CpuAttention, CpuMetadata
from millrace.engine.batch import Batch
from millrace.engine.config import head_kind
from millrace.engine.kernels.cpu.library import (
    BF16,
    F32,
    KINDS,
    PANEL_COLUMNS,
    FloatArray,
    Kernels,
    LayerStruct,
    ModelStruct,
    address,
    padded,
    padded_columns,
)
from millrace.engine.kernels.cpu.packed_weights import (
    PackedFile,
    PackedWriter,
    open_packed,
    pack_matrix,
    packed_path,
)
from millrace.engine.kv_cache import LayerShape
from millrace.engine.loader import Checkpoint

from .base import Logits
from .llama_spec import LlamaSpec
from .rope import inverse_frequencies

MATRICES = ("qkv", "o", "gate_up", "down")


class CpuLlama:
    """Weights and forward pass; see `Model`.

    `kind` names how matrices are stored: "float32", "bfloat16", "int8" or "int4". The packed file
    lies under `cache_dir`; `report` hears of its making.
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
            report(f"packing the weights as {kind} for {kernels.path}")
            _pack(writer, model_path, spec, kernels, kind, report)

        packed = packed_path(cache_dir, model_path, kind, kernels.path)
        self._file = open_packed(packed, write)
        self.num_parameters = int(self._file.extra["num_parameters"])
        self.weight_bytes = int(self._file.extra["weight_bytes"])
        self._padded_vocab = padded_columns(spec.vocab_size)
        self._frequencies = inverse_frequencies(spec.rope, spec.head_dim).numpy()
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
        values = torch.from_numpy(self._logits[: len(wants), : self.vocab_size])
        return Logits(values, likeliest)

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
            frequencies=address(self._frequencies),
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


def _pack(
    writer: PackedWriter,
    model_path: Path,
    spec: LlamaSpec,
    kernels: Kernels,
    kind: str,
    report: Callable[[str], None],
) -> None:
    """Reads a checkpoint layer by layer and writes it packed."""

    matrix_bytes = 0

    def add_matrix(
        name: str, weight: torch.Tensor, bias: torch.Tensor | None = None, kind: str = kind
    ) -> None:
        nonlocal matrix_bytes
        wide_bias = None if bias is None else bias.numpy()
        matrix = pack_matrix(kernels, KINDS[kind], weight.numpy(), wide_bias)
        writer.add_matrix(name, matrix)
        matrix_bytes += matrix.num_bytes

    with Checkpoint(model_path, torch.float32, torch.device("cpu")) as checkpoint:
        embedding = checkpoint.get("model.embed_tokens.weight")
        if embedding.shape != (spec.vocab_size, spec.hidden_size):
            raise UnsupportedModel(
                f"embeddings have shape {tuple(embedding.shape)}, "
                f"config.json says {(spec.vocab_size, spec.hidden_size)}"
            )
        rows = _embedding(embedding, kind)
        writer.add("embedding", rows)
        writer.add("final_norm", padded(checkpoint.get("model.norm.weight").numpy()))
        head = embedding if spec.tied else checkpoint.get("lm_head.weight")
        add_matrix("head", head, kind=head_kind(kind))
        intermediate = 0
        for index in range(spec.num_layers):
            prefix = f"model.layers.{index}"
            attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
            qkv = [f"{attention}.{name}_proj" for name in "qkv"]
            gate_up = [f"{mlp}.gate_proj", f"{mlp}.up_proj"]
            for name, source in (
                ("input_norm", f"{prefix}.input_layernorm"),
                ("post_norm", f"{prefix}.post_attention_layernorm"),
            ):
                writer.add(f"{index}.{name}", padded(checkpoint.get(f"{source}.weight").numpy()))
            if spec.has_qk_norm:
                for name in ("q_norm", "k_norm"):
                    norm = checkpoint.get(f"{attention}.{name}.weight")
                    writer.add(f"{index}.{name}", norm.numpy())
            add_matrix(
                f"{index}.qkv",
                checkpoint.merged([f"{name}.weight" for name in qkv]),
                checkpoint.try_merged([f"{name}.bias" for name in qkv]),
            )
            add_matrix(
                f"{index}.o",
                checkpoint.get(f"{attention}.o_proj.weight"),
                checkpoint.try_get(f"{attention}.o_proj.bias"),
            )
            weight = checkpoint.merged([f"{name}.weight" for name in gate_up])
            bias = checkpoint.try_merged([f"{name}.bias" for name in gate_up])
            intermediate = len(weight) // 2
            add_matrix(
                f"{index}.gate_up",
                interleave_panels(weight),
                None if bias is None else interleave_panels(bias[:, None])[:, 0].contiguous(),
            )
            add_matrix(
                f"{index}.down",
                checkpoint.get(f"{mlp}.down_proj.weight"),
                checkpoint.try_get(f"{mlp}.down_proj.bias"),
            )
            report(f"packed layer {index + 1} of {spec.num_layers}")
        # Older checkpoints carry the rotary frequencies, and some a copy of a tied head.
        checkpoint.check_all_used(but=("rotary_emb.inv_freq", *(["lm_head.weight"] * spec.tied)))
        writer.finish(
            {
                "num_parameters": checkpoint.num_parameters,
                "weight_bytes": matrix_bytes + (0 if spec.tied else rows.nbytes),
                "intermediate": intermediate,
            }
        )


def _embedding(embedding: torch.Tensor, kind: str) -> npt.NDArray[np.float32 | np.int16]:
    """The token embeddings as the kernels read them: float32, or the bits of bfloat16."""
    if kind == "float32":
        return embedding.numpy()
    bits: npt.NDArray[np.int16] = embedding.to(torch.bfloat16).view(torch.int16).numpy()
    return bits


def interleave_panels(gate_up: torch.Tensor) -> torch.Tensor:
    """[2 I, K] of gate over up → panels of 32 rows of gate and up in turn, padded with zeros."""
    num_rows, k = gate_up.shape
    half = num_rows // 2
    wide = torch.zeros((2, padded_columns(half), k), dtype=gate_up.dtype)
    wide[:, :half] = gate_up.view(2, half, k)
    panels = wide.view(2, -1, PANEL_COLUMNS, k).transpose(0, 1)
    return panels.reshape(-1, k)
