"""The tensors of a GGUF model: which there must be, of which shape, and where each one lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace.core.errors import ConfigError

from .gguf_header import GgufHeader, GgufTensorEntry, shown
from .gguf_metadata import GgufMetadata

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

Shape = tuple[int, ...]
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 16


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor: its name in a checkpoint, and where its `num_bytes` begin in a file.

    shape: of the checkpoint. head_rows: rows that make a head whose rotary halves are interleaved,
    0 where none are.
    """

    name: str
    checkpoint_name: str
    type: GGMLQuantizationType
    shape: Shape
    path: Path
    position: int
    num_bytes: int
    head_rows: int = 0


def tensors_of(parts: Sequence[GgufHeader], config: Mapping[str, Any]) -> list[GgufTensor]:
    """The tensors of a model in one or several files, as `config`, its config.json, needs them.

    Raises UnsupportedModel, naming file and tensor, for one too many or too few, of another shape,
    of a type that is not known, or that does not lie where it should.
    """
    needed = dict(_needed(config))
    tensors = [tensor for part in parts for tensor in _located(part, needed)]
    missing = [name for name in needed if name not in {tensor.name for tensor in tensors}]
    if missing:
        others = f"and {len(missing) - 1} more are" if len(missing) > 1 else "is"
        raise parts[0].fault(f"GGUF tensor {shown(missing[0])} {others} missing")
    return tensors


def _needed(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, Shape, int]]]:
    """GGUF names with (name in a checkpoint, shape, head_rows)."""
    hidden, inter = config["hidden_size"], config["intermediate_size"]
    head_dim = config["head_dim"]
    queries, keys = (
        config[count] * head_dim for count in ("num_attention_heads", "num_key_value_heads")
    )
    # llama.cpp interleaves the halves for this architecture only.
    rotated = head_dim if config["model_type"] == "llama" else 0
    yield "token_embd.weight", ("model.embed_tokens.weight", (config["vocab_size"], hidden), 0)
    yield "output_norm.weight", ("model.norm.weight", (hidden,), 0)
    if not config["tie_word_embeddings"]:
        yield "output.weight", ("lm_head.weight", (config["vocab_size"], hidden), 0)
    is_qwen2 = config["model_type"] == "qwen2"
    has_qkv_bias, has_o_bias = is_qwen2 or config["attention_bias"], config["attention_bias"]
    matrices = (
        ("attn_q", "self_attn.q_proj", (queries, hidden), has_qkv_bias, rotated),
        ("attn_k", "self_attn.k_proj", (keys, hidden), has_qkv_bias, rotated),
        ("attn_v", "self_attn.v_proj", (keys, hidden), has_qkv_bias, 0),
        ("attn_output", "self_attn.o_proj", (hidden, queries), has_o_bias, 0),
        ("ffn_gate", "mlp.gate_proj", (inter, hidden), config["mlp_bias"], 0),
        ("ffn_up", "mlp.up_proj", (inter, hidden), config["mlp_bias"], 0),
        ("ffn_down", "mlp.down_proj", (hidden, inter), config["mlp_bias"], 0),
    )
    norms = [
        ("attn_norm", "input_layernorm", hidden),
        ("ffn_norm", "post_attention_layernorm", hidden),
    ]
    if config["model_type"] == "qwen3":
        norms += [
            ("attn_q_norm", "self_attn.q_norm", head_dim),
            ("attn_k_norm", "self_attn.k_norm", head_dim),
        ]
    for layer in range(config["num_hidden_layers"]):
        for name, own_name, size in norms:
            yield (
                f"blk.{layer}.{name}.weight",
                (f"model.layers.{layer}.{own_name}.weight", (size,), 0),
            )
        for name, own_name, shape, has_bias, head_rows in matrices:
            own_name = f"model.layers.{layer}.{own_name}"
            yield f"blk.{layer}.{name}.weight", (f"{own_name}.weight", shape, head_rows)
            if has_bias:
                yield f"blk.{layer}.{name}.bias", (f"{own_name}.bias", shape[:1], head_rows)


def _located(
    part: GgufHeader, needed: Mapping[str, tuple[str, Shape, int]]
) -> Iterator[GgufTensor]:
    alignment = _alignment(part)
    start = _padded(part.end, alignment)
    offset = 0
    for entry in part.tensors:
        if entry.name not in needed:
            raise part.fault(
                f"GGUF tensor {shown(entry.name)} has no counterpart in its checkpoint"
            )
        checkpoint_name, shape, head_rows = needed[entry.name]
        if entry.shape != shape:
            raise part.fault(
                f"GGUF tensor {shown(entry.name)} has the shape {list(entry.shape)}; "
                f"its keys and vocabulary say {list(shape)}"
            )
        kind, num_bytes = _type_and_size(part, entry)
        if entry.offset != offset:
            raise part.fault(
                f"damaged: GGUF tensor {shown(entry.name)} begins at {entry.offset}, "
                f"not at {offset}"
            )
        end = start + offset + num_bytes
        if end > part.size:
            raise part.fault(
                f"cut off: GGUF tensor {shown(entry.name)} goes on to byte {end}, "
                f"the file has {part.size}"
            )
        yield GgufTensor(
            entry.name,
            checkpoint_name,
            kind,
            shape,
            part.path,
            start + offset,
            num_bytes,
            head_rows,
        )
        offset += _padded(num_bytes, alignment)


def _alignment(part: GgufHeader) -> int:
    metadata = GgufMetadata(part)
    key = "general.alignment"
    alignment = metadata.try_whole(key, least=1, most=_MAX_ALIGNMENT) or _DEFAULT_ALIGNMENT
    if alignment & (alignment - 1):
        raise metadata.wrong(key, "no power of two")
    return alignment


def _padded(size: int, alignment: int) -> int:
    return size + -size % alignment


def _type_and_size(part: GgufHeader, entry: GgufTensorEntry) -> tuple[GGMLQuantizationType, int]:
    gguf = gguf_package()
    try:
        kind = gguf.GGMLQuantizationType(entry.type_code)
        block_items, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError) as error:
        raise part.fault(
            f"GGUF tensor {shown(entry.name)} has type {entry.type_code}, which is unknown"
        ) from error
    row = entry.shape[-1]
    if row % block_items:
        raise part.fault(
            f"GGUF tensor {shown(entry.name)} has rows of {row}, no multiple of {block_items}, "
            f"the blocks of {kind.name}"
        )
    num_blocks = row // block_items
    for size in entry.shape[:-1]:
        num_blocks *= size
    return kind, num_blocks * block_bytes


def gguf_package() -> Any:
    """The `gguf` package. Raises ConfigError where it is missing."""
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            "reading GGUF needs the `gguf` package: pip install 'millrace[models]'"
        ) from error
    return gguf
