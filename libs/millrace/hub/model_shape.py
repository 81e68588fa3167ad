"""The numbers of a model that decide its memory, from config.json and safetensors headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from millrace.core.errors import UnsupportedModel
from millrace.engine.tensor_headers import TensorHeader

# Of numbers in activations and K/V; "int8" and "int4" stand for such matrices beside bfloat16.
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 2, "int4": 2}
# Of a number in a matrix: groups of 32 share a scale of two bytes, those of 4 bits an offset too.
_MATRIX_BYTES = {"int8": 1 + 2 / 32, "int4": 0.5 + 4 / 32}
QUANTIZED = tuple(_MATRIX_BYTES)
STORED_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
# The native route joins these into two matrices per layer.
_MERGED = ("q_proj.", "k_proj.", "v_proj.", "gate_proj.", "up_proj.")
# Of a number in the widest matrix of a layer: read, joined, put into panels in turn and packed.
_PACKED_LAYER_BYTES = 13
# Logits are kept raw, as float32 and once more while they are worked on.
_LOGIT_COPIES = 3


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The numbers that decide memory."""

    num_parameters: int
    num_merged_parameters: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    is_tied: bool

    def weight_bytes(self, dtype: str) -> int:
        """All tensors in `dtype`.

        Of quantized models embeddings stay in 16 bits and the head has 8; a tied one is a copy.
        """
        if dtype not in _MATRIX_BYTES:
            return self.num_parameters * DTYPE_BYTES[dtype]
        embedding = self.vocab_size * self.hidden_size
        in_layers = self.num_parameters - embedding * (1 if self.is_tied else 2)
        at_the_ends = embedding * (DTYPE_BYTES[dtype] + _MATRIX_BYTES["int8"])
        return int(at_the_ends + in_layers * _MATRIX_BYTES[dtype])

    def packed_head_bytes(self, dtype: str) -> int:
        """What the generic route adds over the kernels: a tied head is packed beside the embedding.

        0 for quantized kinds, whose `weight_bytes` have that copy.
        """
        if not self.is_tied or dtype in _MATRIX_BYTES:
            return 0
        return self.vocab_size * self.hidden_size * DTYPE_BYTES[dtype]

    def packing_bytes(self, dtype: str) -> int:
        """Private memory while the kernels' weights are packed, beyond that of the process.

        The embedding stays in float32 beside its rows as they are stored, while first the head is
        packed and then the layers; measured within 10 % over tied and untied models and kinds.
        """
        embedding = self.vocab_size * self.hidden_size
        rows = 0 if dtype == "float32" else 2
        head_panels = _MATRIX_BYTES["int8"] if dtype in QUANTIZED else DTYPE_BYTES[dtype]
        at_head = embedding * (head_panels + (0 if self.is_tied else 4))
        in_layer = 2 * self.intermediate_size * self.hidden_size * _PACKED_LAYER_BYTES
        return int(embedding * (4 + rows) + max(at_head, in_layer))

    def merged_bytes(self, dtype: str) -> int:
        """The tensors that the native route copies to join them."""
        return self.num_merged_parameters * DTYPE_BYTES[dtype]

    def kv_bytes_per_token(self, dtype: str) -> int:
        """K and V of one token over all layers."""
        per_layer = 2 * self.num_kv_heads * self.head_dim
        return per_layer * self.num_layers * DTYPE_BYTES[dtype]

    def activation_bytes(
        self, dtype: str, *, num_tokens: int, num_rows: int, context_len: int
    ) -> int:
        """Working memory of the largest step: `num_tokens` of prompt at the end of a context of
        `context_len`, and logits of `num_rows` rows."""
        size = DTYPE_BYTES[dtype]
        num_tokens = min(num_tokens, context_len)
        heads = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        in_mlp = 2 * self.hidden_size + 4 * self.intermediate_size
        in_attention = 3 * self.hidden_size + 3 * heads
        # The row's own K and V, gathered, then once more for every query head that shares them.
        gathered = 2 * context_len * (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        mask = num_tokens * context_len
        attending = num_tokens * in_attention * size + gathered * size + mask
        logits = num_rows * self.vocab_size * (size + 4 * _LOGIT_COPIES)
        return max(attending, num_tokens * in_mlp * size, logits)

    def kernel_activation_bytes(
        self, dtype: str, *, num_tokens: int, num_rows: int, context_len: int
    ) -> int:
        """The same where the CPU kernels run the step: rows in float32, inputs of products beside
        them, and no copies of K and V."""
        num_tokens = min(num_tokens, context_len)
        attended = self.num_heads * self.head_dim
        heads = attended + 2 * self.num_kv_heads * self.head_dim
        wide = self.hidden_size + heads + self.head_dim
        if dtype in QUANTIZED:
            wide += max(attended, self.intermediate_size)
        inputs = self.hidden_size + attended + self.intermediate_size
        per_token = 4 * wide + DTYPE_BYTES[dtype] * inputs
        return num_tokens * per_token + 4 * num_rows * self.vocab_size

    def workspace_bytes_per_token(self, dtype: str) -> int:
        """What a decode step adds for each token of context: one layer's K and V gathered, and a
        float32 score for each head, twice."""
        gathered = 2 * self.num_kv_heads * self.head_dim * DTYPE_BYTES[dtype]
        return gathered + 2 * 4 * self.num_heads


def shape_of(config: Mapping[str, Any], tensors: list[TensorHeader]) -> ModelShape:
    """Raises UnsupportedModel where config.json lacks a number."""
    text = {**config, **(config.get("text_config") or {})}

    def number(*keys: str) -> int:
        for key in keys:
            if text.get(key) is not None:
                return int(text[key])
        raise UnsupportedModel(f"config.json has no {' or '.join(keys)}: memory cannot be computed")

    num_heads = number("num_attention_heads", "n_head")
    hidden_size = number("hidden_size", "n_embd")
    is_tied = bool(text.get("tie_word_embeddings", False))
    return ModelShape(
        num_parameters=sum(
            tensor.num_elements
            for tensor in tensors
            if not (is_tied and tensor.name == "lm_head.weight")
        ),
        num_merged_parameters=sum(
            tensor.num_elements
            for tensor in tensors
            if any(part in tensor.name for part in _MERGED)
        ),
        num_layers=number("num_hidden_layers", "n_layer"),
        num_heads=num_heads,
        num_kv_heads=int(text.get("num_key_value_heads") or num_heads),
        head_dim=int(text.get("head_dim") or hidden_size // num_heads),
        hidden_size=hidden_size,
        intermediate_size=int(text.get("intermediate_size") or 4 * hidden_size),
        vocab_size=number("vocab_size"),
        is_tied=is_tied,
    )
