"""GGUF as an import format: one file in, a folder of safetensors, config and tokenizer out.

Weights are dequantised with the `gguf` package and stored as bfloat16. llama.cpp stores the Q and K
projections of the Llama architecture with each head's two rotary halves interleaved; that is
undone here, so the folder is an ordinary checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from millrace.core.errors import ConfigError, UnsupportedModel

from .bfloat16 import to_bfloat16_bits
from .gguf_tokenizer import tokenizer_config_json, tokenizer_json
from .progress import Progress
from .safetensors_file import write_safetensors
from .staging import check_disk

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from gguf import GGUFReader, ReaderTensor

# GGUF architecture -> model_type and class of the checkpoint.
_ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
}
_TOP_LEVEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_NAME = re.compile(r"blk\.(\d+)\.([a-z_]+)\.(weight|bias)")


def convert_gguf(source: Path, destination: Path, *, stream: TextIO | None = None) -> str:
    """Write the model of `source` into the existing folder `destination`.

    Returns the licence that the file names, "" where it names none.

    Raises UnsupportedModel for an architecture, tensor or tokenizer without an exact counterpart,
    ConfigError where the `gguf` package is missing or the disk is too full.
    """
    reader = _open(source)
    metadata = _Metadata(reader, source)
    config = config_json(metadata, {tensor.name for tensor in reader.tensors})
    tokenizer = tokenizer_json(metadata)
    _write_json(destination / "config.json", config)
    _write_json(destination / "generation_config.json", generation_config_json(metadata))
    _write_json(destination / "tokenizer.json", tokenizer)
    _write_json(
        destination / "tokenizer_config.json",
        tokenizer_config_json(metadata, config["max_position_embeddings"]),
    )
    _write_weights(reader, config, destination / "model.safetensors", stream)
    return str(metadata.get("general.license", ""))


def _open(source: Path) -> GGUFReader:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ConfigError(
            "reading GGUF needs the `gguf` package: pip install 'millrace[models]'"
        ) from error
    try:
        return GGUFReader(source)
    except (ValueError, IndexError) as error:
        raise UnsupportedModel(f"{source}: not a readable GGUF file: {error}") from error


class _Metadata(Mapping[str, Any]):
    """The key-value part of a GGUF file; long lists are decoded when asked for, once."""

    def __init__(self, reader: GGUFReader, source: Path) -> None:
        self._fields = reader.fields
        self._source = source
        self._decoded: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._decoded:
            if key not in self._fields:
                raise UnsupportedModel(f"{self._source}: GGUF key {key!r} is missing")
            self._decoded[key] = self._fields[key].contents()
        return self._decoded[key]

    def __contains__(self, key: object) -> bool:
        return key in self._fields

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self._fields else default

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)


def config_json(metadata: Mapping[str, Any], tensor_names: set[str]) -> dict[str, Any]:
    """The checkpoint's config.json. Raises UnsupportedModel for what it could not express."""
    architecture = metadata["general.architecture"]
    if architecture not in _ARCHITECTURES:
        raise UnsupportedModel(
            f"GGUF architecture {architecture!r} is not importable (only "
            f"{', '.join(sorted(_ARCHITECTURES))} are); use the model's safetensors folder instead"
        )
    _refuse_variants(metadata, architecture, tensor_names)
    model_type, class_name = _ARCHITECTURES[architecture]

    def value(key: str) -> Any:
        return metadata[f"{architecture}.{key}"]

    num_heads = int(value("attention.head_count"))
    hidden_size = int(value("embedding_length"))
    config: dict[str, Any] = {
        "architectures": [class_name],
        "model_type": model_type,
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": hidden_size,
        "intermediate_size": int(value("feed_forward_length")),
        "num_hidden_layers": int(value("block_count")),
        "num_attention_heads": num_heads,
        "num_key_value_heads": int(
            metadata.get(f"{architecture}.attention.head_count_kv", num_heads)
        ),
        "head_dim": int(
            metadata.get(f"{architecture}.attention.key_length", hidden_size // num_heads)
        ),
        "hidden_act": "silu",
        "max_position_embeddings": int(value("context_length")),
        "rms_norm_eps": _shortest(value("attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(metadata.get(f"{architecture}.rope.freq_base", 10000.0)),
        "rope_scaling": None,
        "tie_word_embeddings": "output.weight" not in tensor_names,
        "attention_bias": architecture == "llama" and "blk.0.attn_q.bias" in tensor_names,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": "bfloat16",
    }
    return config | _special_ids(metadata)


def _refuse_variants(
    metadata: Mapping[str, Any], architecture: str, tensor_names: set[str]
) -> None:
    """Variants that share an architecture name but compute something else."""
    if int(metadata.get(f"{architecture}.expert_count", 0)) > 0:
        raise UnsupportedModel("GGUF mixture-of-experts models are not importable")
    if "rope_freqs.weight" in tensor_names or (
        metadata.get(f"{architecture}.rope.scaling.type", "none") != "none"
    ):
        raise UnsupportedModel(
            "GGUF models with scaled rotary positions are not importable: the file keeps the "
            "result and not the rule; use the model's safetensors folder instead"
        )


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05, not 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))


def _special_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    names = {
        "bos_token_id": "bos_token_id",
        "eos_token_id": "eos_token_id",
        "pad_token_id": "padding_token_id",
    }
    return {
        name: int(metadata[f"tokenizer.ggml.{key}"])
        for name, key in names.items()
        if f"tokenizer.ggml.{key}" in metadata
    }


def generation_config_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """generation_config.json: the ids that start, pad and end a text."""
    ids: dict[str, Any] = {**_special_ids(metadata)}
    eos_ids = [ids["eos_token_id"]] if "eos_token_id" in ids else []
    for key in ("eot_token_id", "eom_token_id"):
        token_id = metadata.get(f"tokenizer.ggml.{key}")
        if token_id is not None and int(token_id) not in eos_ids:
            eos_ids.append(int(token_id))
    if len(eos_ids) > 1:
        ids["eos_token_id"] = eos_ids
    return ids


def _write_weights(
    reader: GGUFReader, config: Mapping[str, Any], path: Path, stream: TextIO | None
) -> None:
    tensors = [(t, checkpoint_name(t.name)) for t in reader.tensors]
    layout = [
        # GGUF lists the fastest-varying dimension first.
        (name, "BF16", tuple(int(n) for n in reversed(t.shape)))
        for t, name in tensors
    ]
    num_elements = sum(int(t.n_elements) for t, _ in tensors)
    check_disk(path.parent, 2 * num_elements, "the converted model")
    total = sum(int(t.n_bytes) for t, _ in tensors)
    progress = Progress("converting weights", total, stream)

    def contents() -> Iterator[memoryview]:
        for (tensor, name), (_, _, shape) in zip(tensors, layout, strict=True):
            values = _dequantized(tensor).reshape(shape)
            values = _in_checkpoint_order(values, name, config)
            yield to_bfloat16_bits(values).data
            progress.advance(int(tensor.n_bytes))

    write_safetensors(path, layout, contents())
    progress.finish()


def _dequantized(tensor: ReaderTensor) -> npt.NDArray[np.float32]:
    from gguf.quants import dequantize

    try:
        return dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise UnsupportedModel(
            f"GGUF tensor {tensor.name} has type {tensor.tensor_type.name}, "
            "which cannot be dequantised"
        ) from error


def checkpoint_name(name: str) -> str:
    """The checkpoint's name of a GGUF tensor. Raises UnsupportedModel for an unknown one."""
    if name in _TOP_LEVEL:
        return _TOP_LEVEL[name]
    match = _LAYER_NAME.fullmatch(name)
    if match is None or match[2] not in _IN_LAYER:
        raise UnsupportedModel(f"GGUF tensor {name!r} has no counterpart in a Llama checkpoint")
    return f"model.layers.{match[1]}.{_IN_LAYER[match[2]]}.{match[3]}"


def _in_checkpoint_order(
    values: npt.NDArray[np.float32], name: str, config: Mapping[str, Any]
) -> npt.NDArray[np.float32]:
    if config["model_type"] != "llama":
        return values
    if ".q_proj." in name:
        return unpermute_rotary(values, int(config["num_attention_heads"]))
    if ".k_proj." in name:
        return unpermute_rotary(values, int(config["num_key_value_heads"]))
    return values


def unpermute_rotary(values: npt.NDArray[np.float32], num_heads: int) -> npt.NDArray[np.float32]:
    """Put each head's rotary halves one after the other again.

    values: [num_heads * head_dim, ...] with rows of a head as (x0, y0, x1, y1, ...); returned with
    (x0, x1, ..., y0, y1, ...), the order of transformers' Llama.
    """
    half = values.shape[0] // num_heads // 2
    pairs = values.reshape(num_heads, half, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
