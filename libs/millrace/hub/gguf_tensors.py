"""The tensors of a GGUF model: which there must be, of which shape, and where each one lies."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millrace.core.errors import ConfigError
from millrace.engine.models.llama_spec import LlamaSpec
from millrace.engine.models.llama_tensors import EMBEDDING, HEAD, llama_tensors

from .gguf_header import GgufHeader, GgufTensorEntry, shown
from .gguf_metadata import GgufMetadata

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

Shape = tuple[int, ...]
# Names in a checkpoint → names in a GGUF file.
_TOP_LEVEL = {
    EMBEDDING: "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    HEAD: "output.weight",
}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER_NAME = re.compile(r"model\.layers\.(?P<layer>\d+)\.(?P<part>[a-z_.]+)\.(?P<end>weight|bias)")
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
    # llama.cpp interleaves the halves for this architecture only.
    is_rotated = config["model_type"] == "llama"
    for name, sides in llama_tensors(LlamaSpec.from_config(config)).items():
        if name != HEAD or not config["tie_word_embeddings"]:
            is_query_or_key = ".q_proj." in name or ".k_proj." in name
            head_rows = config["head_dim"] if is_rotated and is_query_or_key else 0
            shape = tuple(side.size for side in sides)
            yield _gguf_name(name), (name, shape, head_rows)


def _gguf_name(name: str) -> str:
    match = _LAYER_NAME.fullmatch(name)
    if match is None:
        return _TOP_LEVEL[name]
    return f"blk.{match['layer']}.{_IN_LAYER[match['part']]}.{match['end']}"


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
