"""What config.json and generation_config.json of a checkpoint say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from millrace.core.errors import UnsupportedModel


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json; raises `UnsupportedModel` where it is missing or broken."""
    return read_json(folder / "config.json")


def read_eos_token_ids(folder: Path, config: dict[str, Any]) -> tuple[int, ...]:
    """Ids that end a text: generation_config.json decides, config.json where it is silent."""
    generation = folder / "generation_config.json"
    found = read_json(generation).get("eos_token_id") if generation.is_file() else None
    if found is None:
        found = config.get("eos_token_id")
    if found is None:
        return ()
    return tuple(found) if isinstance(found, list) else (int(found),)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises `UnsupportedModel` naming the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise UnsupportedModel(f"{path} holds no JSON object")
    return content
