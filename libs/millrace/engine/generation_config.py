"""What a model folder says of generation: which tokens end a text, and how to draw the others."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from millrace.core.errors import UnsupportedModel

from .config_json import read_json, read_text
from .end_tokens import TOKENIZER_CONFIG_FILE, read_end_tokens

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
_EOS = "eos_token_id"
_MAX_SHOWN = 60
# Beyond it an integer may be no float.
_MOST = 1 << 1000


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """`eos_token_ids` end a text; the others are None if the folder is silent."""

    eos_token_ids: tuple[int, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


def read_generation_config(
    folder: Path, report: Callable[[str], None] = lambda text: None
) -> GenerationDefaults:
    """Reads config.json, generation_config.json and the tokenizer's files.

    The end of a text is whatever one of the three calls so, and added tokens that are known by
    name for it. `do_sample: false` asks for the likeliest tokens, temperature 0; if it is left
    out, a temperature that stands there is meant. `report` hears of values that are no numbers;
    they are left out. Whether they are in range is for `default_sampling` to say.

    Raises `UnsupportedModel`, which names file and value, for ids that are none of the vocabulary
    and for files that are no JSON objects.
    """
    config, generation = _read(folder / CONFIG_FILE), _read(folder / GENERATION_FILE)
    vocab_size = _vocab_size(config)
    ends = read_end_tokens(folder)
    declared = [
        *_checked_ids(folder / GENERATION_FILE, _EOS, generation.get(_EOS), vocab_size),
        *_checked_ids(folder / CONFIG_FILE, _EOS, config.get(_EOS), vocab_size),
        *_checked_ids(folder / CONFIG_FILE, _EOS, _text_part(config).get(_EOS), vocab_size),
        *_checked_ids(folder / TOKENIZER_CONFIG_FILE, "eos_token", ends.declared, vocab_size),
    ]
    known = [token_id for token_id in ends.known if vocab_size is None or token_id < vocab_size]
    return GenerationDefaults(
        tuple(dict.fromkeys(declared + known)), **dict(_sampling(generation, report))
    )


def _read(path: Path) -> dict[str, Any]:
    """A missing or empty file says nothing."""
    return read_json(path) if path.is_file() and read_text(path).strip() else {}


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a multimodal model's language part."""
    part = config.get("text_config")
    return part if isinstance(part, Mapping) else {}


def _vocab_size(config: Mapping[str, Any]) -> int | None:
    sizes = (part.get("vocab_size") for part in (config, _text_part(config)))
    return next((size for size in sizes if type(size) is int), None)


def _checked_ids(path: Path, field: str, value: Any, vocab_size: int | None) -> list[int]:
    """One id or a list of them, or none for null."""
    ids = value if isinstance(value, list) else [value] if value is not None else []
    for token_id in ids:
        is_id = type(token_id) is int and token_id >= 0
        if not is_id or (vocab_size is not None and token_id >= vocab_size):
            most = "" if vocab_size is None else f" to {vocab_size - 1}"
            raise UnsupportedModel(
                f"{path}: {field} {_shown(token_id)} is no token of the model; "
                f"ids are whole numbers from 0{most}"
            )
    return ids


def _sampling(
    generation: Mapping[str, Any], report: Callable[[str], None]
) -> Iterator[tuple[str, Any]]:
    """(name, value) of each field that is a number."""
    if generation.get("do_sample") is False:
        # Temperature and truncation are then leftovers, as for transformers; penalties are not.
        generation = {"temperature": 0.0, "repetition_penalty": generation.get(_SAMPLING[-1])}
    for name in _SAMPLING:
        value = generation.get(name)
        number = _whole(value) if name == "top_k" else _number(value)
        if number is not None:
            yield name, number
        elif value is not None:
            kind = "whole number" if name == "top_k" else "number"
            report(f"{GENERATION_FILE} is not followed: {name} is {_shown(value)}, no {kind}")


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return math.inf if isinstance(value, int) and abs(value) > _MOST else float(value)


def _whole(value: Any) -> int | None:
    number = _number(value)
    if number is None or not math.isfinite(number) or number != int(number):
        return None
    return int(number)


def _shown(value: Any) -> str:
    """As it stands in the file, as far as a line of a log takes it."""
    text = json.dumps(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"
