"""tokenizer.json and tokenizer_config.json from the vocabulary inside a GGUF file.

GGUF names the pre-tokenizer (`tokenizer.ggml.pre`) instead of describing it, so each name that we
accept has its rules here; an unknown name is refused, since a near miss splits text wrongly.
"""

from __future__ import annotations

from typing import Any

from .gguf_advice import USE_FOLDER
from .gguf_header import shown
from .gguf_metadata import GgufMetadata
from .gguf_vocabulary import Vocabulary

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


def check_tokenizer(metadata: GgufMetadata, architecture: str) -> None:
    """Raises UnsupportedModel for a vocabulary of another kind.

    Also for one that a model type does not keep: for Qwen2, transformers has its own pre-tokenizer
    whatever a folder says.
    """
    kind = metadata.try_text("tokenizer.ggml.model")
    if kind != "gpt2":
        raise metadata.fault(
            f"GGUF tokenizer of kind {shown(kind or 'missing')} (tokenizer.ggml.model) cannot be "
            f"rebuilt exactly (only 'gpt2', byte-level BPE, can); {USE_FOLDER}"
        )
    pre = metadata.try_text("tokenizer.ggml.pre") or "missing"
    known = _pre_tokenizers()
    if pre not in known:
        raise metadata.fault(
            f"GGUF pre-tokenizer {shown(pre)} (tokenizer.ggml.pre) is not one of "
            f"{', '.join(sorted(known))}; {USE_FOLDER}"
        )
    if architecture == "qwen2" and pre != "qwen2":
        raise metadata.wrong(
            "tokenizer.ggml.pre", f"which a qwen2 model does not keep; {USE_FOLDER}"
        )


def tokenizer_json(metadata: GgufMetadata, vocabulary: Vocabulary) -> dict[str, Any]:
    """The `tokenizers` description of a byte-level BPE vocabulary.

    metadata: as `check_tokenizer` lets it pass. Raises UnsupportedModel where BOS or EOS is to be
    added and the file does not say which token it is.
    """
    pre = metadata.value("tokenizer.ggml.pre")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token_id,
                "content": vocabulary.tokens[token_id],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": is_special,
            }
            for token_id, is_special in vocabulary.added()
        ],
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": _pre_tokenizers()[pre],
        "post_processor": _post_processor(metadata, vocabulary),
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
            "vocab": vocabulary.ids,
            "merges": vocabulary.merges,
        },
    }


def _post_processor(metadata: GgufMetadata, vocabulary: Vocabulary) -> dict[str, Any] | None:
    """Puts BOS before and EOS behind a text where the file asks for it; Llama 3 always has BOS."""
    is_llama3 = metadata.try_text("tokenizer.ggml.pre") == "llama-bpe"
    around: list[str | None] = [None, None]
    for index, (name, default) in enumerate((("bos", is_llama3), ("eos", False))):
        key = f"tokenizer.ggml.add_{name}_token"
        if metadata.flag(key, default):
            around[index] = vocabulary.named(name)
            if around[index] is None:
                raise metadata.fault(
                    f"GGUF key 'tokenizer.ggml.{name}_token_id' is missing, and {name.upper()} is "
                    f"to be added ({key})"
                )
    if around == [None, None]:
        return None
    tokens = [token for token in around if token is not None]

    def surrounded(sequence: str, type_id: int) -> list[dict[str, Any]]:
        before, behind = (
            [] if token is None else [{"SpecialToken": {"id": token, "type_id": type_id}}]
            for token in around
        )
        return [*before, {"Sequence": {"id": sequence, "type_id": type_id}}, *behind]

    return {
        "type": "TemplateProcessing",
        "single": surrounded("A", 0),
        "pair": surrounded("A", 0) + surrounded("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [vocabulary.ids[token]], "tokens": [token]}
            for token in tokens
        },
    }


def tokenizer_config_json(
    metadata: GgufMetadata, vocabulary: Vocabulary, max_model_len: int
) -> dict[str, Any]:
    """The named special tokens, the length limit and the chat template.

    Names of tokens that are no special ones are left out: transformers would make them special,
    and one file's padding is "!".
    """
    special = {
        vocabulary.tokens[token_id] for token_id, is_special in vocabulary.added() if is_special
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_model_len,
        "clean_up_tokenization_spaces": False,
    }
    for field, name in (
        ("bos_token", "bos"),
        ("eos_token", "eos"),
        ("unk_token", "unknown"),
        ("pad_token", "padding"),
    ):
        token = vocabulary.named(name)
        if token in special:
            config[field] = token
    template = metadata.try_text("tokenizer.chat_template")
    if template:
        config["chat_template"] = template
    return config
