"""The tensors of the native route, all of them: name, shape, and what of config.json makes it.

Headers are held against this one table before anything is read or packed, for the kernels take the
sizes that config.json tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from millrace.engine.tensor_headers import TensorHeader

from .llama_spec import LlamaSpec
from .misfits import check_dtype, check_none_lacking, check_none_left_over, is_ignored, misshapen

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Side:
    """One dimension of a tensor: the settings that make it, and their product."""

    settings: str
    size: int


Shape = tuple[Side, ...]


def llama_tensors(spec: LlamaSpec) -> dict[str, Shape]:
    """Every tensor by its name. Of a tied model's embedding and head one may be absent."""
    hidden = Side("hidden_size", spec.hidden_size)
    vocab = Side("vocab_size", spec.vocab_size)
    tensors: dict[str, Shape] = {
        EMBEDDING: (vocab, hidden),
        "model.norm.weight": (hidden,),
        HEAD: (vocab, hidden),
    }
    layer = dict(_layer(spec, hidden))
    for index in range(spec.num_layers):
        prefix = f"model.layers.{index}"
        tensors.update((f"{prefix}.{name}", shape) for name, shape in layer.items())
    return tensors


def check_llama_headers(spec: LlamaSpec, headers: Iterable[TensorHeader]) -> None:
    """Raises `UnsupportedModel` for a tensor too few, too many, of another shape or no float."""
    wanted = llama_tensors(spec)
    stored = {header.name: header for header in headers}
    check_none_left_over(name for name in stored if name not in wanted and not is_ignored(name))
    for name, shape in wanted.items():
        if name in stored:
            _check_tensor(stored[name], shape)
    missing = wanted.keys() - stored.keys()
    if spec.tied and len(missing & {EMBEDDING, HEAD}) == 1:
        missing -= {EMBEDDING, HEAD}
    check_none_lacking(missing)


def _check_tensor(header: TensorHeader, shape: Shape) -> None:
    check_dtype(header)
    sizes = tuple(side.size for side in shape)
    if header.shape != sizes:
        settings = " by ".join(side.settings for side in shape)
        raise misshapen(header.name, header.shape, sizes, settings)


def _layer(spec: LlamaSpec, hidden: Side) -> Iterator[tuple[str, Shape]]:
    queries = Side("num_attention_heads * head_dim", spec.num_heads * spec.head_dim)
    keys = Side("num_key_value_heads * head_dim", spec.num_kv_heads * spec.head_dim)
    inner = Side("intermediate_size", spec.intermediate_size)
    matrices = (
        ("self_attn.q_proj", queries, hidden, spec.has_qkv_bias),
        ("self_attn.k_proj", keys, hidden, spec.has_qkv_bias),
        ("self_attn.v_proj", keys, hidden, spec.has_qkv_bias),
        ("self_attn.o_proj", hidden, queries, spec.has_o_bias),
        ("mlp.gate_proj", inner, hidden, spec.has_mlp_bias),
        ("mlp.up_proj", inner, hidden, spec.has_mlp_bias),
        ("mlp.down_proj", hidden, inner, spec.has_mlp_bias),
    )
    for name, rows, columns, has_bias in matrices:
        yield f"{name}.weight", (rows, columns)
        if has_bias:
            yield f"{name}.bias", (rows,)
    yield "input_layernorm.weight", (hidden,)
    yield "post_attention_layernorm.weight", (hidden,)
    if spec.has_qk_norm:
        head_dim = Side("head_dim", spec.head_dim)
        yield "self_attn.q_norm.weight", (head_dim,)
        yield "self_attn.k_norm.weight", (head_dim,)
