"""GGUF files put together byte by byte, so that any part of one can be wrong."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import quantize

from tests.unit.hub.conftest import byte_level_alphabet

U32, I32, F32, BOOL, TEXT, LIST, F64 = 4, 5, 6, 7, 8, 9, 12
FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"} | {
    12: "d"
}
CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
NORMAL_KIND, CONTROL_KIND, USER_KIND = 1, 3, 4
HIDDEN, INTER, HEADS, KV_HEADS, HEAD_DIM = 64, 96, 4, 2, 16

Value = tuple[int, Any]


@dataclass
class Tensor:
    """shape: slowest dimension first. `offset` None: where it belongs."""

    name: str
    shape: tuple[int, ...]
    data: bytes
    type_code: int = 0
    offset: int | None = None


@dataclass
class Document:
    """A GGUF file. A value is (type, value), of a list (LIST, (item type, items))."""

    keys: dict[str, Value]
    tensors: list[Tensor]
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    num_tensors: int | None = None
    more_keys: list[tuple[str, Value]] = field(default_factory=list)

    def header(self) -> bytes:
        """Everything before the tensors, unpadded."""
        pairs = [*self.keys.items(), *self.more_keys]
        count = len(self.tensors) if self.num_tensors is None else self.num_tensors
        parts = [self.magic, struct.pack("<IQQ", self.version, count, len(pairs))]
        for key, (kind, value) in pairs:
            parts += [_text(key), struct.pack("<I", kind), _value(kind, value)]
        offset = 0
        for tensor in self.tensors:
            shape = tuple(reversed(tensor.shape))
            parts.append(_text(tensor.name))
            parts.append(struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
            place = offset if tensor.offset is None else tensor.offset
            parts.append(struct.pack("<IQ", tensor.type_code, place))
            offset += len(self._padded(tensor.data))
        return b"".join(parts)

    def content(self) -> bytes:
        """The whole file."""
        return self._padded(self.header()) + b"".join(self._padded(t.data) for t in self.tensors)

    def write(self, path: Path) -> Path:
        """`content` into a file."""
        path.write_bytes(self.content())
        return path

    def _padded(self, data: bytes) -> bytes:
        return data + bytes(-len(data) % self.alignment)


def _text(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(kind: int, value: Any) -> bytes:
    if kind == TEXT:
        return _text(value)
    if kind == LIST:
        item_kind, items = value
        head = struct.pack("<IQ", item_kind, len(items))
        if item_kind in FORMATS:
            return head + struct.pack(f"<{len(items)}{FORMATS[item_kind]}", *items)
        return head + b"".join(_value(item_kind, item) for item in items)
    return struct.pack(f"<{FORMATS[kind]}", value)


def tokens_of(extra: Iterable[str] = ()) -> list[str]:
    """A vocabulary of control tokens, bytes, two merged tokens, and what else is wanted."""
    return [*CONTROL, *byte_level_alphabet(), "he", "ĠĠ", *extra]


def tiny_document(
    architecture: str = "llama",
    *,
    pre: str = "smollm",
    layers: int = 2,
    extra: Iterable[tuple[str, int]] = (),
    tied: bool = True,
    bias: bool = False,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
) -> Document:
    """A small model whose files a worker takes. extra: (token, kind) behind the others.

    kind: how matrices are stored.
    """
    more = list(extra)
    tokens = tokens_of(token for token, _ in more)
    kinds = [CONTROL_KIND] * 3 + [NORMAL_KIND] * (len(tokens) - 3 - len(more))
    kinds += [kind_ for _, kind_ in more]
    keys: dict[str, Value] = {
        "general.architecture": (TEXT, architecture),
        "general.type": (TEXT, "model"),
        "general.license": (TEXT, "apache-2.0"),
        "general.alignment": (U32, 32),
        f"{architecture}.context_length": (U32, 512),
        f"{architecture}.embedding_length": (U32, HIDDEN),
        f"{architecture}.block_count": (U32, layers),
        f"{architecture}.feed_forward_length": (U32, INTER),
        f"{architecture}.attention.head_count": (U32, HEADS),
        f"{architecture}.attention.head_count_kv": (U32, KV_HEADS),
        f"{architecture}.attention.key_length": (U32, HEAD_DIM),
        f"{architecture}.attention.value_length": (U32, HEAD_DIM),
        f"{architecture}.attention.layer_norm_rms_epsilon": (F32, 1e-5),
        f"{architecture}.rope.dimension_count": (U32, HEAD_DIM),
        f"{architecture}.rope.freq_base": (F32, 10000.0),
        "tokenizer.ggml.model": (TEXT, "gpt2"),
        "tokenizer.ggml.pre": (TEXT, pre),
        "tokenizer.ggml.tokens": (LIST, (TEXT, tokens)),
        "tokenizer.ggml.token_type": (LIST, (I32, kinds)),
        "tokenizer.ggml.scores": (LIST, (F32, [0.0] * len(tokens))),
        "tokenizer.ggml.merges": (LIST, (TEXT, ["h e", "Ġ Ġ"])),
        "tokenizer.ggml.bos_token_id": (U32, 1),
        "tokenizer.ggml.eos_token_id": (U32, 2),
        "tokenizer.ggml.unknown_token_id": (U32, 0),
        "tokenizer.ggml.padding_token_id": (U32, 0),
        "tokenizer.ggml.add_bos_token": (BOOL, False),
        "tokenizer.chat_template": (TEXT, "{{ messages[0]['content'] }}"),
    }
    return Document(keys, list(_tensors(architecture, len(tokens), layers, tied, bias, kind)))


def _tensors(
    architecture: str, vocab: int, layers: int, tied: bool, bias: bool, kind: GGMLQuantizationType
) -> Iterable[Tensor]:
    rng = np.random.default_rng(11)

    def tensor(name: str, *shape: int) -> Tensor:
        values = rng.standard_normal(shape, dtype=np.float32) / 8
        stored = kind if len(shape) > 1 else GGMLQuantizationType.F32
        return Tensor(name, shape, packed(values, stored, rng), int(stored))

    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    yield tensor("token_embd.weight", vocab, HIDDEN)
    yield tensor("output_norm.weight", HIDDEN)
    if not tied:
        yield tensor("output.weight", vocab, HIDDEN)
    for layer in range(layers):
        prefix = f"blk.{layer}"
        yield tensor(f"{prefix}.attn_norm.weight", HIDDEN)
        yield tensor(f"{prefix}.ffn_norm.weight", HIDDEN)
        if architecture == "qwen3":
            yield tensor(f"{prefix}.attn_q_norm.weight", HEAD_DIM)
            yield tensor(f"{prefix}.attn_k_norm.weight", HEAD_DIM)
        for name, rows, columns, has_bias in (
            ("attn_q", queries, HIDDEN, bias or architecture == "qwen2"),
            ("attn_k", keys, HIDDEN, bias or architecture == "qwen2"),
            ("attn_v", keys, HIDDEN, bias or architecture == "qwen2"),
            ("attn_output", HIDDEN, queries, bias),
            ("ffn_gate", INTER, HIDDEN, False),
            ("ffn_up", INTER, HIDDEN, False),
            ("ffn_down", HIDDEN, INTER, False),
        ):
            yield tensor(f"{prefix}.{name}.weight", rows, columns)
            if has_bias:
                yield tensor(f"{prefix}.{name}.bias", rows)


def packed(values: Any, kind: GGMLQuantizationType, rng: np.random.Generator) -> bytes:
    """`values` in one of the kinds; random blocks where the package cannot quantise to it."""
    try:
        return bytes(quantize(values, kind).tobytes())
    except NotImplementedError:
        block_items, block_bytes = GGML_QUANT_SIZES[kind]
        return rng.bytes(values.size // block_items * block_bytes)
