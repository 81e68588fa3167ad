"""Typed reading of a JSON object: every refusal names the field, the value and what is allowed."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeGuard

from millrace.core.errors import InvalidRequest

from .errors import unsupported_parameter

MAX_SHOWN_CHARS = 80
MAX_INTEGER = 2**64
NEAR = 0.84

_CAMEL = re.compile(r"(?<=[a-z0-9])([A-Z])")


class Fields:
    """The fields of one object; null counts as absent. `where` is put before the names.

    `written`: names as the client wrote them, where `values` has another spelling.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        where: str = "",
        written: Mapping[str, str] | None = None,
    ) -> None:
        self.values = {key: value for key, value in values.items() if value is not None}
        self._where = where
        self._written = written or {}

    def has(self, name: str) -> bool:
        """True where the field is there and not null."""
        return name in self.values

    def raw(self, name: str) -> Any:
        """The value as it stands; None where absent."""
        return self.values.get(name)

    def text(self, name: str) -> str | None:
        """A string."""
        found: str | None = self._typed(name, "a string", lambda value: isinstance(value, str))
        return found

    def flag(self, name: str) -> bool | None:
        """True or false."""
        found: bool | None = self._typed(name, "true or false", lambda v: isinstance(v, bool))
        return found

    def integer(self, name: str) -> int | None:
        """A whole number within 64 bits."""
        found: int | None = self._typed(name, "an integer", is_integer)
        if found is not None and abs(found) > MAX_INTEGER:
            raise self.refuse(name, "an integer of at most 64 bits")
        return found

    def number(self, name: str) -> float | None:
        """A finite number."""
        found: float | None = self._typed(name, "a number", is_number)
        return None if found is None else float(found)

    def items(self, name: str) -> list[Any] | None:
        """A list of anything."""
        found: list[Any] | None = self._typed(name, "a list", lambda v: isinstance(v, list))
        return found

    def object(self, name: str) -> Fields | None:
        """An object, with its own fields."""
        found = self._typed(name, "an object", lambda value: isinstance(value, dict))
        return None if found is None else Fields(found, f"{self._where}{name}.")

    def choice(self, name: str, allowed: Collection[str]) -> str | None:
        """One of several words."""
        found: str | None = self._typed(
            name, " or ".join(allowed), lambda v: isinstance(v, str) and v in allowed
        )
        return found

    def strings(self, name: str) -> tuple[str, ...] | None:
        """A string, or a list of strings."""
        found = self.raw(name)
        if isinstance(found, str):
            return (found,)
        if found is not None and not (
            isinstance(found, list) and all(isinstance(each, str) for each in found)
        ):
            raise self.refuse(name, "a string or a list of strings")
        return None if found is None else tuple(found)

    def integers(self, name: str) -> tuple[int, ...] | None:
        """A list of whole numbers."""
        found = self.items(name)
        if found is not None and not all(is_integer(each) for each in found):
            raise self.refuse(name, "a list of integers")
        return None if found is None else tuple(found)

    def path(self, name: str) -> str:
        """The name with what stands before it."""
        return self._where + name

    def refuse(self, name: str, allowed: str) -> InvalidRequest:
        """The error for a value of the wrong kind."""
        path = self._where + name
        shown = _shown(self.values.get(name))
        return InvalidRequest(
            f"{path} is {shown}; it must be {allowed}", field=path, metadata={"value": shown}
        )

    def missing(self, name: str) -> InvalidRequest:
        """The error for a needed field that is not there."""
        path = self._where + name
        return InvalidRequest(f"{path} is missing", field=path)

    def with_snake_names(self) -> Fields:
        """The same with camelCase names in snake_case; both spellings must agree."""
        found: dict[str, Any] = {}
        written: dict[str, str] = {}
        for key, value in self.values.items():
            name = _CAMEL.sub(lambda match: "_" + match[1].lower(), key)
            if name in found and found[name] != value:
                raise InvalidRequest(
                    f"{name} is given twice, as {_shown(found[name])} and {_shown(value)}",
                    field=name,
                )
            found[name] = value
            written[name] = key
        return Fields(found, self._where, written)

    def as_written(self, name: str) -> str:
        """The name in the client's spelling."""
        return self._written.get(name, name)

    def _typed(self, name: str, allowed: str, is_right: Callable[[Any], bool]) -> Any:
        value = self.values.get(name)
        if value is not None and not is_right(value):
            raise self.refuse(name, allowed)
        return value


def check_names(fields: Fields, known: Collection[str], unsupported: Mapping[str, str]) -> None:
    """Refuses fields that would change the answer and are not implemented, and likely typos.

    Other unknown names are ignored: clients send fields that concern only the service they were
    made for.
    """
    for name in fields.values:
        if name in known:
            continue
        if name in unsupported and fields.raw(name) not in (False, [], {}, ""):
            raise unsupported_parameter(name, unsupported[name])
        near = difflib.get_close_matches(name[:64], known, n=1, cutoff=NEAR)
        if near and name not in unsupported:
            written = fields.as_written(name)
            meant = near[0] if written == name else _camel(near[0])
            raise InvalidRequest(
                f"there is no field {written[:64]}; did you mean {meant}?", field=written
            )


def is_integer(value: Any) -> TypeGuard[int]:
    """True for a JSON integer; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> TypeGuard[float]:
    """True for a finite JSON number."""
    if is_integer(value):
        return -MAX_INTEGER <= value <= MAX_INTEGER
    return isinstance(value, float) and math.isfinite(value)


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)


def _shown(value: Any) -> str:
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return "an integer of more than 64 bits"
    shown = json.dumps(value) if not isinstance(value, (list, dict)) else type(value).__name__
    return shown if len(shown) <= MAX_SHOWN_CHARS else shown[:MAX_SHOWN_CHARS] + "..."
