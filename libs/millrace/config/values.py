"""Setting values: from text and from TOML to the declared type, and back to text."""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any

from millrace.core.address import bare_host
from millrace.core.secret import Secret
from millrace.core.url import Url

# Where to listen: a name or an address, IPv6 with or without brackets; the value has none.
Host = Annotated[str, "host"]
_NO_HOST = re.compile(r"[\s/@]|://")

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
    if is_secret(base):
        return "URL" if issubclass(base, Url) else "text, never shown"
    if base == Host:
        return "host name or address"
    labels = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path"}
    if base not in labels:
        raise TypeError(f"a setting cannot have the type {hint!r}")
    return labels[base]


def none_word(hint: Any) -> str:
    """How a value of this type that means "none given" is told in help."""
    base, is_optional = split_optional(hint)
    if is_optional:
        return "if it is not given"
    return "0" if base in (int, float) else "empty"


def is_secret(hint: Any) -> bool:
    """True for values that must not be shown as they were given."""
    base, _ = split_optional(hint)
    return isinstance(base, type) and issubclass(base, Secret)


def parse_text(text: str, hint: Any) -> Any:
    """A flag's or variable's text as the declared type. Raises `ValueError` if it is none."""
    base, is_optional = split_optional(hint)
    stripped = text.strip()
    if is_optional and stripped.lower() in ("", "none"):
        return None
    if typing.get_origin(base) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if base is bool:
        return _parse_bool(stripped)
    if base is Path:
        return _parse_path(stripped)
    if base is str:
        return text
    if base == Host:
        return _parse_host(stripped)
    return base(stripped)


def _parse_host(text: str) -> str:
    host = bare_host(text)
    if _NO_HOST.search(host) or host.count(":") == 1:
        raise ValueError(text)
    return host


def _parse_path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        # `~` of a user without a home folder.
        raise ValueError(text) from error


def _parse_bool(text: str) -> bool:
    if text.lower() in TRUE_WORDS:
        return True
    if text.lower() in FALSE_WORDS:
        return False
    raise ValueError(text)


def parse_toml(value: Any, hint: Any) -> Any:
    """A TOML value as the declared type. Raises `ValueError` if it is of another kind."""
    base, _ = split_optional(hint)
    if isinstance(value, str) and (base == Host or is_secret(base)):
        return parse_text(value, base)
    if typing.get_origin(base) is tuple:
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ValueError(value)
    if base is Path and isinstance(value, str):
        return _parse_path(value)
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
