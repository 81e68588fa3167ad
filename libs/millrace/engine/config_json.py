"""The JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from millrace.core.errors import UnsupportedModel


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json; raises `UnsupportedModel` where it is missing or broken."""
    return read_json(folder / "config.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises `UnsupportedModel` naming the file."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UnsupportedModel(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise UnsupportedModel(f"{path} holds no JSON object")
    return content


def read_text(path: Path) -> str:
    """A file in UTF-8; raises `UnsupportedModel` naming it."""
    try:
        return path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"cannot read {path}: {error}") from error
