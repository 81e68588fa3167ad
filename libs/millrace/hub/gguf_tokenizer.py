"""tokenizer.json and tokenizer_config.json from the vocabulary inside a GGUF file.

GGUF names the pre-tokenizer (`tokenizer.ggml.pre`) instead of describing it, so each name that we
accept has its rules here; an unknown name is refused, since a near miss splits text wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from millrace.core.errors import UnsupportedModel

# Values of tokenizer.ggml.token_type.
_CONTROL = 3
_USER_DEFINED = 4

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS_AND_SPACES = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_SPLIT = _CONTRACTIONS + "|" + _WORDS_AND_SPACES % r"\p{N}{1,3}"
_QWEN2_SPLIT = _CONTRACTIONS + "|" + _WORDS_AND_SPACES % r"\p{N}"


def _byte_level(*, use_regex: bool, add_prefix_space: bool = False) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _split_then_bytes(pattern: str) -> dict[str, Any]:
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [split, _byte_level(use_regex=False)]}


def _digits_then_bytes() -> dict[str, Any]:
    digits = {"type": "Digits", "individual_digits": True}
    return {"type": "Sequence", "pretokenizers": [digits, _byte_level(use_regex=True)]}


def _pre_tokenizers() -> dict[str, dict[str, Any]]:
    gpt2 = _byte_level(use_regex=True)
    return {
        "gpt-2": gpt2,
        "smollm": _digits_then_bytes(),
        "llama-bpe": _split_then_bytes(_LLAMA3_SPLIT),
        "qwen2": _split_then_bytes(_QWEN2_SPLIT),
    }


def tokenizer_json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The `tokenizers` description of a byte-level BPE vocabulary.

    metadata: GGUF keys and values. Raises UnsupportedModel for other kinds of vocabulary.
    """
    kind = metadata.get("tokenizer.ggml.model", "missing")
    if kind != "gpt2":
        raise UnsupportedModel(
            f"GGUF tokenizer of kind {kind!r} cannot be rebuilt exactly (only 'gpt2', byte-level "
            "BPE, can); use the model's safetensors folder instead"
        )
    pre = metadata.get("tokenizer.ggml.pre", "missing")
    known = _pre_tokenizers()
    if pre not in known:
        raise UnsupportedModel(
            f"GGUF pre-tokenizer {pre!r} is not one of {', '.join(sorted(known))}; "
            "use the model's safetensors folder instead"
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types: list[int] = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(tokens, types),
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": known[pre],
        "post_processor": _post_processor(metadata, tokens),
        "decoder": _byte_level(use_regex=True, add_prefix_space=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # Llama 3 keeps whole words that its merges alone would not build.
            "ignore_merges": pre == "llama-bpe",
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [pair.split(" ", 1) for pair in metadata["tokenizer.ggml.merges"]],
        },
    }


def _added_tokens(tokens: list[str], types: list[int]) -> list[dict[str, Any]]:
    return [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == _CONTROL,
        }
        for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]


def _post_processor(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, Any] | None:
    """Prepends BOS where the file asks for it; Llama 3 always does."""
    default = metadata.get("tokenizer.ggml.pre") == "llama-bpe"
    if not metadata.get("tokenizer.ggml.add_bos_token", default):
        return None
    bos_id = int(metadata["tokenizer.ggml.bos_token_id"])
    bos = tokens[bos_id]
    special = {"SpecialToken": {"id": bos, "type_id": 0}}
    text_a = {"Sequence": {"id": "A", "type_id": 0}}
    text_b = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing",
        "single": [special, text_a],
        "pair": [special, text_a, special, text_b],
        "special_tokens": {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}},
    }


def tokenizer_config_json(metadata: Mapping[str, Any], max_model_len: int) -> dict[str, Any]:
    """The named special tokens, the length limit and the chat template."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_model_len,
        "clean_up_tokenization_spaces": False,
    }
    for name, key in (
        ("bos_token", "bos_token_id"),
        ("eos_token", "eos_token_id"),
        ("unk_token", "unknown_token_id"),
        ("pad_token", "padding_token_id"),
    ):
        token_id = metadata.get(f"tokenizer.ggml.{key}")
        if token_id is not None:
            config[name] = tokens[int(token_id)]
    template = metadata.get("tokenizer.chat_template")
    if template:
        config["chat_template"] = template
    return config
