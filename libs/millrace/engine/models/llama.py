"""The native route: Llama, Mistral, Qwen2, Qwen3, SmolLM and what shares their shape.

Q, K and V are one matrix, gate and up another; logits are computed only for rows that sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from millrace.engine.attention.base import AttentionStep
from millrace.engine.batch import Batch
from millrace.engine.kv_cache import LayerShape
from millrace.engine.loader import Checkpoint
from millrace.engine.tensors import to_device

from .base import Logits
from .llama_spec import LlamaSpec
from .misfits import UNTIED
from .rope import inverse_frequencies, rotate, rotation
from .soundness import sound_rows
from .tied_head import embedding_and_head


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer; matrices are [out, in] as in the checkpoint."""

    input_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    o: torch.Tensor
    o_bias: torch.Tensor | None
    post_norm: torch.Tensor
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


class LlamaModel:
    """Weights and forward pass; see `Model`. `report` hears of what is not as config.json says."""

    def __init__(
        self, spec: LlamaSpec, checkpoint: Checkpoint, report: Callable[[str], None]
    ) -> None:
        self._spec = spec
        shape = LayerShape(spec.num_kv_heads, spec.head_dim, spec.head_dim)
        self.layers = (shape,) * spec.num_layers
        self.vocab_size = spec.vocab_size
        embedding, head = embedding_and_head(checkpoint, spec)
        if spec.tied and head != embedding:
            report(UNTIED)
        self._embedding = checkpoint.get(embedding)
        self._norm = checkpoint.get("model.norm.weight")
        self._head = self._embedding if head == embedding else checkpoint.get(head)
        self._weights = [_load_layer(checkpoint, index, spec) for index in range(spec.num_layers)]
        self._frequencies = inverse_frequencies(spec.rope, spec.head_dim).to(checkpoint.device)
        self.num_parameters = checkpoint.num_parameters
        self.weight_bytes = checkpoint.num_bytes

    @torch.inference_mode()
    def forward(self, batch: Batch, step: AttentionStep) -> Logits:
        """See `Model.forward`."""
        device = self._embedding.device
        hidden = functional.embedding(to_device(batch.input_ids, device), self._embedding)
        positions = to_device(batch.positions, device)
        cos, sin = rotation(positions, self._frequencies, hidden.dtype)
        for index, weights in enumerate(self._weights):
            normed = rms_norm(hidden, weights.input_norm, self._spec.norm_eps)
            hidden = hidden + self._attention(index, weights, normed, cos, sin, step)
            normed = rms_norm(hidden, weights.post_norm, self._spec.norm_eps)
            hidden = hidden + _mlp(weights, normed)
        last = hidden.index_select(0, to_device(batch.sample_indices, device))
        last = rms_norm(last, self._norm, self._spec.norm_eps)
        return Logits(functional.linear(last, self._head), is_sound=sound_rows(hidden, batch))

    def _attention(
        self,
        index: int,
        weights: LayerWeights,
        hidden: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        step: AttentionStep,
    ) -> torch.Tensor:
        spec = self._spec
        num_tokens = hidden.shape[0]
        num_rotated = spec.num_heads + spec.num_kv_heads
        qkv = functional.linear(hidden, weights.qkv, weights.qkv_bias)
        heads = qkv.view(num_tokens, num_rotated + spec.num_kv_heads, spec.head_dim)
        rotated = heads[:, :num_rotated]
        if weights.q_norm is not None and weights.k_norm is not None:
            q = rms_norm(rotated[:, : spec.num_heads], weights.q_norm, spec.norm_eps)
            k = rms_norm(rotated[:, spec.num_heads :], weights.k_norm, spec.norm_eps)
            rotated = torch.cat((q, k), 1)
        rotated = rotate(rotated, cos, sin)
        out = step.attend(
            index,
            rotated[:, : spec.num_heads],
            rotated[:, spec.num_heads :],
            heads[:, num_rotated:],
            spec.head_dim**-0.5,
            spec.windows[index],
        )
        return functional.linear(out.view(num_tokens, -1), weights.o, weights.o_bias)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm over the last dimension, in float32 whatever the dtype."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * (wide * scale).to(x.dtype)


def _mlp(weights: LayerWeights, hidden: torch.Tensor) -> torch.Tensor:
    gate, up = functional.linear(hidden, weights.gate_up, weights.gate_up_bias).chunk(2, -1)
    return functional.linear(functional.silu(gate) * up, weights.down, weights.down_bias)


def _load_layer(checkpoint: Checkpoint, index: int, spec: LlamaSpec) -> LayerWeights:
    prefix = f"model.layers.{index}"
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    qkv = [f"{attention}.{name}_proj" for name in "qkv"]
    norms = [f"{attention}.{name}_norm.weight" for name in "qk"] if spec.has_qk_norm else []
    gate_up = [f"{mlp}.gate_proj", f"{mlp}.up_proj"]
    return LayerWeights(
        input_norm=checkpoint.get(f"{prefix}.input_layernorm.weight"),
        qkv=checkpoint.merged([f"{name}.weight" for name in qkv]),
        qkv_bias=checkpoint.try_merged([f"{name}.bias" for name in qkv]),
        q_norm=checkpoint.get(norms[0]) if norms else None,
        k_norm=checkpoint.get(norms[1]) if norms else None,
        o=checkpoint.get(f"{attention}.o_proj.weight"),
        o_bias=checkpoint.try_get(f"{attention}.o_proj.bias"),
        post_norm=checkpoint.get(f"{prefix}.post_attention_layernorm.weight"),
        gate_up=checkpoint.merged([f"{name}.weight" for name in gate_up]),
        gate_up_bias=checkpoint.try_merged([f"{name}.bias" for name in gate_up]),
        down=checkpoint.get(f"{mlp}.down_proj.weight"),
        down_bias=checkpoint.try_get(f"{mlp}.down_proj.bias"),
    )
