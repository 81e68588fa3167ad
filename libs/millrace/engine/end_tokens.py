"""Tokens that end a text, as the tokenizer's files have them.

tokenizer.json is large, so no more of it is parsed than is needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.core.errors import UnsupportedModel

from .config_json import read_json

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
SPECIAL_FILE = "special_tokens_map.json"

# Ends of a turn or a text by name, as llama.cpp has them. Not "</s>" and "<eos>": if those end
# a text, the files say so, and some vocabularies have them as markup.
KNOWN_END_TOKENS = frozenset(
    {
        *("<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>"),
        *("<|eom|>", "<|end|>", "<|end_of_turn|>", "<|endofturn|>", "<|END_OF_TURN_TOKEN|>"),
        *("<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<end_of_turn>", "<turn|>"),
        *("<end_of_utterance>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|EOT|>"),
        # After these, code models go on with another file.
        *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
    }
)
_HEAD_BYTES = 1 << 20
_ADDED_TOKENS = re.compile(r'"added_tokens"\s*:\s*')
# The format of gpt-oss ends messages within a turn with <|end|>; it is told by these.
_HARMONY = frozenset({"<|return|>", "<|call|>"})


@dataclass(frozen=True, slots=True)
class EndTokens:
    """`declared`: the id of the tokenizer's eos_token, if it has one; `known`: those by name."""

    declared: int | None
    known: tuple[int, ...]


def read_end_tokens(folder: Path) -> EndTokens:
    """Reads the tokenizer's files; whichever is missing says nothing.

    Only added tokens count by name: the same letters as a piece of ordinary text end nothing.
    Raises `UnsupportedModel`, which names the file, for what cannot be read.
    """
    config = _read(folder / TOKENIZER_CONFIG_FILE)
    eos = _eos_token(folder / TOKENIZER_CONFIG_FILE, config)
    eos = eos or _eos_token(folder / SPECIAL_FILE, _read(folder / SPECIAL_FILE))
    added = dict(_in_decoder(config.get("added_tokens_decoder")))
    added = added or dict(_in_tokenizer(folder / TOKENIZER_FILE))
    declared = added.get(eos)
    if eos and declared is None:
        declared = _vocabulary(folder / TOKENIZER_FILE).get(eos)
    return EndTokens(declared, tuple(known_ends(added)))


def known_ends(added: Mapping[str, int]) -> Iterator[int]:
    """Ids of those added tokens, by content, that end a text by their name."""
    is_harmony = added.keys() >= _HARMONY
    for content in sorted(added.keys() & KNOWN_END_TOKENS):
        if not (is_harmony and content == "<|end|>"):
            yield added[content]


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _eos_token(path: Path, config: Mapping[str, Any]) -> str:
    token = config.get("eos_token")
    content = token.get("content") if isinstance(token, Mapping) else token
    if not isinstance(content, str | None):
        raise UnsupportedModel(f"{path}: eos_token is {json.dumps(token)}, which is no token")
    return content or ""


def _in_decoder(decoder: Any) -> Iterator[tuple[str, int]]:
    """(content, id) of each of tokenizer_config.json's added tokens."""
    for token_id, token in decoder.items() if isinstance(decoder, Mapping) else ():
        content = token.get("content") if isinstance(token, Mapping) else None
        if isinstance(content, str) and token_id.isdecimal():
            yield content, int(token_id)


def _in_tokenizer(path: Path) -> Iterator[tuple[str, int]]:
    """(content, id) of each of tokenizer.json's added tokens."""
    for token in _added_tokens(path):
        content, token_id = token.get("content"), token.get("id")
        if isinstance(content, str) and type(token_id) is int:
            yield content, token_id


def _added_tokens(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    found = _early_list(path)
    if found is None:
        found = read_json(path).get("added_tokens")
    tokens = found if isinstance(found, list) else []
    return [token for token in tokens if isinstance(token, dict)]


def _early_list(path: Path) -> list[Any] | None:
    """The list, if it stands near the beginning: before the vocabulary, nearly all of the file."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES).decode("utf-8", "ignore")
        start = _ADDED_TOKENS.search(head)
        found, _ = json.JSONDecoder().raw_decode(head, start.end() if start else 0)
    # The whole file is read then, and what is wrong with it told.
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, list) else None


def _vocabulary(path: Path) -> dict[str, int]:
    """Ids by piece, of the kinds of model that tokenizer.json has."""
    model = _read(path).get("model")
    pieces = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(pieces, Mapping):
        return {piece: index for piece, index in pieces.items() if type(index) is int}
    if isinstance(pieces, list):
        return {pair[0]: index for index, pair in enumerate(pieces) if _is_scored(pair)}
    return {}


def _is_scored(pair: Any) -> bool:
    return isinstance(pair, list) and bool(pair) and isinstance(pair[0], str)
