"""Setting values: from text and from TOML to the declared type, and back to text."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any

TRUE_WORDS = frozenset({"1", "true", "yes", "on"})
FALSE_WORDS = frozenset({"0", "false", "no", "off"})


def split_optional(hint: Any) -> tuple[Any, bool]:
    """`X | None` → (X, True); anything else → (itself, False)."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        if len(members) == 1:
            return members[0], True
    return hint, False


def type_label(hint: Any) -> str:
    """How a type is called in help and errors."""
    base, _ = split_optional(hint)
    if typing.get_origin(base) is tuple:
        return "comma-separated list"
    labels = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path"}
    if base not in labels:
        raise TypeError(f"a setting cannot have the type {hint!r}")
    return labels[base]


def parse_text(text: str, hint: Any) -> Any:
    """A flag's or variable's text as the declared type. Raises `ValueError` where it is none."""
    base, is_optional = split_optional(hint)
    stripped = text.strip()
    if is_optional and stripped.lower() in ("", "none"):
        return None
    if typing.get_origin(base) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if base is bool:
        return _parse_bool(stripped)
    if base is Path:
        return Path(stripped).expanduser()
    if base is str:
        return text
    return base(stripped)


def _parse_bool(text: str) -> bool:
    if text.lower() in TRUE_WORDS:
        return True
    if text.lower() in FALSE_WORDS:
        return False
    raise ValueError(text)


def parse_toml(value: Any, hint: Any) -> Any:
    """A TOML value as the declared type. Raises `ValueError` where it is of another kind."""
    base, _ = split_optional(hint)
    if typing.get_origin(base) is tuple:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ValueError(value)
    if base is Path and isinstance(value, str):
        return Path(value).expanduser()
    if base is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is base:
        return value
    raise ValueError(value)


def format_value(value: Any) -> str:
    """As one would write it in a flag."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value)
