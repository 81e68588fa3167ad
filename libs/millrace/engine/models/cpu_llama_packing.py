"""A checkpoint of the native route as the packed file of the CPU kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from millrace.engine.config import head_kind
from millrace.engine.kernels.cpu.library import (
    KINDS,
    PANEL_COLUMNS,
    Kernels,
    padded,
    padded_columns,
)
from millrace.engine.kernels.cpu.packed_weights import PackedWriter, pack_matrix
from millrace.engine.loader import Checkpoint

from .llama_spec import LlamaSpec
from .rope import inverse_frequencies
from .tied_head import embedding_and_head


def pack_llama(
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
        embedding_name, head_name = embedding_and_head(checkpoint, spec)
        is_tied = head_name == embedding_name
        embedding = checkpoint.get(embedding_name)
        rows = _embedding(embedding, kind)
        writer.add("embedding", rows)
        frequencies = inverse_frequencies(spec.rope, spec.head_dim)
        writer.add("frequencies", frequencies.numpy())
        writer.add("final_norm", padded(checkpoint.get("model.norm.weight").numpy()))
        head = embedding if is_tied else checkpoint.get(head_name)
        add_matrix("head", head, kind=head_kind(kind))
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
        writer.finish(
            {
                "num_parameters": checkpoint.num_parameters,
                "weight_bytes": matrix_bytes + (0 if is_tied else rows.nbytes),
                "is_tied": int(is_tied),
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
