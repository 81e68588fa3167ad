"""Whether a tokenizer and a model agree about token ids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from millrace.core.errors import ConfigError

_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")


def model_vocab_size(config: Mapping[str, Any]) -> int | None:
    """Rows of the model's embedding by its config.json, None if that does not say."""
    for source in (config, config.get("text_config")):
        size = source.get("vocab_size") if isinstance(source, Mapping) else None
        if isinstance(size, int) and size > 0:
            return size
    return None


def check_ids(
    description: Mapping[str, Any],
    vocab_size: int | None,
    named_tokens: Mapping[str, str],
    template: str,
) -> None:
    """Raises ConfigError if two tokens share an id, or a text can give an id that the model lacks.

    description: tokenizer.json, with a list of added tokens. template: source of the chat template.
    Ids beyond the model are fine as long as nothing encodes to them: padding that was added later,
    as a rule. Special tokens are out of reach of texts, so only the chat template and the
    post-processor can write them.
    """
    vocab = _vocabulary(description["model"])
    _check_distinct(vocab)
    _check_merges(description["model"])
    if vocab_size is None:
        return
    added = _added_ids(vocab, description["added_tokens"])
    items = chain(vocab.items(), added.items())
    beyond = {(number, token) for token, number in items if number >= vocab_size}
    if not beyond:
        return
    writers = _Writers(description, named_tokens, template)
    bad = sorted(each for each in beyond if writers.can_write(each[1]))
    if bad:
        number, token = bad[0]
        others = f", and {len(bad) - 1} more tokens are beyond" if len(bad) > 1 else ""
        raise ConfigError(
            f"the tokenizer gives {token!r} the id {number}, but the model has the ids 0 to "
            f"{vocab_size - 1} (vocab_size of config.json){others}"
        )


def _vocabulary(model: Mapping[str, Any]) -> Mapping[str, int]:
    vocab = model["vocab"]
    if isinstance(vocab, Mapping):
        return vocab
    return {token: number for number, (token, _) in enumerate(vocab)}


def _check_distinct(vocab: Mapping[str, int]) -> None:
    if len(set(vocab.values())) == len(vocab):
        return
    token_of: dict[int, str] = {}
    for token, number in vocab.items():
        other = token_of.setdefault(number, token)
        if other is not token:
            raise ConfigError(f"the tokens {other!r} and {token!r} share the id {number}")


def _check_merges(model: Mapping[str, Any]) -> None:
    """The library cuts this prefix off without looking, and ends the process within a character."""
    prefix = model.get("continuing_subword_prefix") or ""
    for _, right in _pairs(model) if prefix else ():
        if not right.startswith(prefix):
            raise ConfigError(f"the merge with {right!r} lacks the prefix {prefix!r}")


def _pairs(model: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    for pair in model.get("merges") or ():
        yield pair.split(" ", 1) if isinstance(pair, str) else pair


def _added_ids(vocab: Mapping[str, int], tokens: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Added tokens have the ids that the `tokenizers` library gives them, whatever the file says:
    those of the vocabulary, else the next ones after its size."""
    ids: dict[str, int] = {}
    next_id = len(vocab)
    for content in filter(None, dict.fromkeys(token["content"] for token in tokens)):
        ids[content] = vocab.get(content, next_id)
        next_id += content not in vocab
    return ids


class _Writers:
    """Everything that can bring a token into a prompt."""

    def __init__(
        self, description: Mapping[str, Any], named_tokens: Mapping[str, str], template: str
    ) -> None:
        self._model = description["model"]
        self._is_special = {
            token["content"]: token["special"] for token in description["added_tokens"]
        }
        self._special_writers = f"{template}\0{description.get('post_processor')}"
        self._names = named_tokens
        self._products: set[str] | None = None

    def can_write(self, token: str) -> bool:
        if token == self._model.get("unk_token"):
            return True
        if token in self._is_special:
            return not self._is_special[token] or self._is_written_as_special(token)
        if self._model.get("type") != "BPE" or self._model.get("ignore_merges"):
            return True
        return self._is_symbol(token) or token in self._merged()

    def _is_written_as_special(self, token: str) -> bool:
        names = [name for name, content in self._names.items() if content == token]
        return any(name in self._special_writers for name in (token, *names))

    def _is_symbol(self, token: str) -> bool:
        """Symbols are what merges begin with: a character, or the spelling of a byte."""
        bare = token.removeprefix(self._model.get("continuing_subword_prefix") or "")
        bare = bare.removesuffix(self._model.get("end_of_word_suffix") or "")
        is_byte = self._model.get("byte_fallback") and _BYTE_TOKEN.fullmatch(token) is not None
        return len(bare) <= 1 or bool(is_byte)

    def _merged(self) -> set[str]:
        if self._products is None:
            prefix = self._model.get("continuing_subword_prefix") or ""
            pairs = _pairs(self._model)
            self._products = {left + right.removeprefix(prefix) for left, right in pairs}
        return self._products
