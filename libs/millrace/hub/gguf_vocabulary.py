"""The byte-level BPE vocabulary inside a GGUF file, checked, and what its tokens are for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from millrace.engine.end_tokens import KNOWN_END_TOKENS, known_ends

from .gguf_header import shown
from .gguf_metadata import GgufMetadata

# Values of tokenizer.ggml.token_type.
_NORMAL, _CONTROL, _USER_DEFINED, _LAST_KIND = 1, 3, 4, 6

# What stands around a gap and the text to fill it with, by name, as llama.cpp knows it and some
# families more; the keys of newer and older files for the same.
_AROUND_THE_GAP: tuple[tuple[tuple[str, ...], frozenset[str]], ...] = (
    (
        ("fim_pre", "prefix"),
        frozenset(
            {
                *("<|fim_prefix|>", "<|fim_begin|>", "<fim-prefix>", "<fim_prefix>", "<PRE>"),
                *("▁<PRE>", "<｜fim▁begin｜>", "<|code_prefix|>", "<|prefix|>", "[PREFIX]"),
            }
        ),
    ),
    (
        ("fim_suf", "suffix"),
        frozenset(
            {
                *("<|fim_suffix|>", "<|fim_hole|>", "<fim-suffix>", "<fim_suffix>", "<SUF>"),
                *("▁<SUF>", "<｜fim▁hole｜>", "<|code_suffix|>", "<|suffix|>", "[SUFFIX]"),
            }
        ),
    ),
    (
        ("fim_mid", "middle"),
        frozenset(
            {
                *("<|fim_middle|>", "<|fim_end|>", "<fim-middle>", "<fim_middle>", "<MID>"),
                *("▁<MID>", "<｜fim▁end｜>", "<|code_middle|>", "<|middle|>", "[MIDDLE]"),
            }
        ),
    ),
)
# What else such a model takes in its prompts: padding, and where repositories and files begin.
_BETWEEN_FILES = frozenset(
    {
        *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>"),
        *("<REPO>", "<reponame>", "<repo_name>", "<|file_sep|>", "<file_sep>", "<filename>"),
    }
)
_BETWEEN_FILES_KEYS = ("fim_pad", "fim_rep", "fim_sep")
_END_KEYS = ("eos", "eot", "eom", *_BETWEEN_FILES_KEYS)
_OTHER_KEYS = ("bos", "unknown", "padding")


class Vocabulary:
    """`tokens` by id and `merges` in their order.

    Raises UnsupportedModel, naming key and value, for parts that do not fit together.
    """

    def __init__(self, metadata: GgufMetadata) -> None:
        self._metadata = metadata
        self.tokens = metadata.texts("tokenizer.ggml.tokens")
        self.ids = self._distinct()
        metadata.try_fractions("tokenizer.ggml.scores", len(self.tokens))
        self.merges = list(self._pairs(metadata.texts("tokenizer.ggml.merges")))
        self._named = dict(self._named_ids())
        self._kinds = self._read_kinds()
        around = [set(self._ids_of(keys, names)) for keys, names in _AROUND_THE_GAP]
        # Without all three it is no coder's vocabulary, and its users write of a "<filename>".
        fills_in = all(around)
        between = self._ids_of(_BETWEEN_FILES_KEYS, _BETWEEN_FILES) if fills_in else ()
        self._between_files = list(dict.fromkeys(between))
        self._writable = frozenset().union(self._between_files, *(around if fills_in else ()))

    def named(self, name: str) -> str | None:
        """The token whose id the file has under a name: "bos", "eos", "unknown" or "padding"."""
        token_id = self._named.get(name)
        return None if token_id is None else self.tokens[token_id]

    def special_ids(self) -> dict[str, int]:
        """Ids under the names that config.json has for them."""
        names = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
        return {names[name]: self._named[name] for name in names if name in self._named}

    def end_ids(self) -> list[int]:
        """Ids that end a text: those that the file says, and those known by name.

        After those between files, a model that fills gaps goes on with another file.
        """
        declared = [self._named[name] for name in _END_KEYS if name in self._named]
        added = {self.tokens[token_id]: token_id for token_id, _ in self.added()}
        return list(dict.fromkeys([*declared, *self._between_files, *known_ends(added)]))

    def added(self) -> Iterator[tuple[int, bool]]:
        """(id, is_special) of each token that is more than a piece of text.

        What a user must be able to write is not special: texts that have it around a gap.
        """
        for token_id, (token, kind) in enumerate(zip(self.tokens, self._kinds, strict=True)):
            if not token:
                continue
            if token_id in self._writable:
                yield token_id, False
            # By name, since some converters overlook them.
            elif kind == _CONTROL or token in KNOWN_END_TOKENS:
                yield token_id, True
            elif kind == _USER_DEFINED:
                yield token_id, False

    def _distinct(self) -> Mapping[str, int]:
        ids: dict[str, int] = {}
        for token_id, token in enumerate(self.tokens):
            if ids.setdefault(token, token_id) != token_id:
                raise self._metadata.fault(
                    f"GGUF key 'tokenizer.ggml.tokens' has {shown(token)} twice, "
                    f"as {ids[token]} and {token_id}"
                )
        if not ids:
            raise self._metadata.fault("GGUF key 'tokenizer.ggml.tokens' is empty")
        return ids

    def _pairs(self, merges: list[str]) -> Iterator[list[str]]:
        for index, merge in enumerate(merges):
            left, space, right = merge.partition(" ")
            if not space or not {left, right, left + right} <= self.ids.keys():
                raise self._metadata.fault(
                    f"GGUF key 'tokenizer.ggml.merges' has {shown(merge)} at {index}, "
                    "which joins no two tokens to a third"
                )
            yield [left, right]

    def _named_ids(self) -> Iterator[tuple[str, int]]:
        around = [name for names, _ in _AROUND_THE_GAP for name in names]
        for name in (*_END_KEYS, *_OTHER_KEYS, *around):
            token_id = self._metadata.try_whole(
                f"tokenizer.ggml.{name}_token_id", most=len(self.tokens) - 1
            )
            if token_id is not None:
                yield name, token_id

    def _read_kinds(self) -> list[int]:
        key = "tokenizer.ggml.token_type"
        kinds = self._metadata.try_wholes(key, len(self.tokens))
        if kinds is None:
            return [_NORMAL] * len(self.tokens)
        for token_id, kind in enumerate(kinds):
            if not 0 <= kind <= _LAST_KIND:
                raise self._metadata.fault(
                    f"GGUF key {key!r} has {kind} at {token_id}, no kind of token"
                )
        return kinds

    def _ids_of(self, keys: tuple[str, ...], names: frozenset[str]) -> Iterator[int]:
        yield from (self._named[key] for key in keys if key in self._named)
        yield from (self.ids[name] for name in sorted(names & self.ids.keys()))
