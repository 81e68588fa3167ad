"""generation_config.json: how a checkpoint wants to be generated with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config_json import read_json

NAME = "generation_config.json"


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What the file says; None or nothing if it is silent."""

    eos_token_ids: tuple[int, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


def read_generation_config(folder: Path) -> GenerationDefaults:
    """The file of a checkpoint folder; empty if there is none.

    Raises `UnsupportedModel` if it cannot be read.
    """
    if not (folder / NAME).is_file():
        return GenerationDefaults()
    content = read_json(folder / NAME)
    return GenerationDefaults(
        eos_token_ids=_ids(content.get("eos_token_id")),
        temperature=_number(content.get("temperature")),
        top_p=_number(content.get("top_p")),
        top_k=_integer(content.get("top_k")),
        min_p=_number(content.get("min_p")),
        repetition_penalty=_number(content.get("repetition_penalty")),
    )


def _ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(each for each in values if _integer(each) is not None)


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, float) or _integer(value) is not None else None
