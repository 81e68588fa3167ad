"""Typed reading of JSON values: every refusal names the field, the value and what is allowed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeGuard

from millrace.core.errors import InvalidRequest
from millrace.core.request_fields.field import Kind, RequestField

MAX_SHOWN_CHARS = 80
MAX_INTEGER = 2**64


def read_value(known: RequestField, path: str, value: Any) -> Any:
    """The value of a field, which the client calls `path`, as its kind has it."""
    return _READERS[known.kind](known, path, value)


def wrong_value(path: str, value: Any, allowed: str, field: str = "") -> InvalidRequest:
    """The error for a value of the wrong kind; `field` is given if `path` is an entry of it."""
    shown = shown_value(value)
    return InvalidRequest(
        f"{path} is {shown}; it must be {allowed}",
        field=field or path,
        metadata={"value": shown},
    )


def missing_field(path: str) -> InvalidRequest:
    """The error for a needed field that is not there."""
    return InvalidRequest(f"{path} is missing", field=path)


def is_integer(value: Any) -> TypeGuard[int]:
    """True for an integer as JSON has them: 8, 8.0 and 8e0 are one number; true is none."""
    if isinstance(value, float):
        return value.is_integer()
    return isinstance(value, int) and not isinstance(value, bool)


def integers(path: str, values: list[Any], field: str = "") -> tuple[int, ...]:
    """The whole numbers in a list; the error names the entry that is none."""
    # A list of a million is looked at once, and fast, if all of it is as it should be.
    if set(map(type, values)) <= {int}:
        return tuple(values)
    for index, value in enumerate(values):
        if not is_integer(value):
            raise wrong_value(f"{path}[{index}]", value, Kind.INTEGER, field or path)
    return tuple(map(int, values))


def texts(path: str, values: list[Any], field: str = "") -> tuple[str, ...]:
    """The strings in a list; the error names the entry that is none."""
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise wrong_value(f"{path}[{index}]", value, Kind.TEXT, field or path)
    return tuple(values)


def shown_value(value: Any) -> str:
    """The value as an error shows it: bounded, and by its kind if it has parts."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        return "an integer of more than 64 bits"
    shown = json.dumps(value)
    return shown if len(shown) <= MAX_SHOWN_CHARS else shown[:MAX_SHOWN_CHARS] + "..."


def _refuse(known: RequestField, path: str, value: Any) -> NoReturn:
    allowed = " or ".join(known.choices) or known.kind
    raise wrong_value(path, value, f"{allowed}; {known.hint}" if known.hint else allowed, path)


def _of_type(wanted: type) -> Callable[[RequestField, str, Any], Any]:
    def read(known: RequestField, path: str, value: Any) -> Any:
        if not isinstance(value, wanted):
            _refuse(known, path, value)
        return value

    return read


def _integer(known: RequestField, path: str, value: Any) -> int:
    if not is_integer(value):
        _refuse(known, path, value)
    if abs(value) > MAX_INTEGER:
        raise wrong_value(path, value, "an integer of at most 64 bits")
    return int(value)


def _number(known: RequestField, path: str, value: Any) -> float:
    if not _is_number(value):
        _refuse(known, path, value)
    return float(value)


def _word(known: RequestField, path: str, value: Any) -> str:
    if not isinstance(value, str) or value not in known.choices:
        _refuse(known, path, value)
    return value


def _texts(known: RequestField, path: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        _refuse(known, path, value)
    return texts(path, value)


def _integers(known: RequestField, path: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        _refuse(known, path, value)
    return integers(path, value)


def _biases(known: RequestField, path: str, value: Any) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, dict):
        _refuse(known, path, value)
    return tuple((_token_id(path, key), _bias(path, key, bias)) for key, bias in value.items())


def _token_id(path: str, key: str) -> int:
    # As JSON writes a number, so that no two keys are one token.
    if key.isascii() and key.isdigit() and len(key) <= 10 and str(int(key)) == key:
        return int(key)
    raise InvalidRequest(f"{path} has the key {key[:32]!r}; keys are token ids", field=path)


def _bias(path: str, key: str, bias: Any) -> float:
    if not _is_number(bias):
        raise wrong_value(f"{path}[{key}]", bias, Kind.NUMBER, path)
    return float(bias)


def _is_number(value: Any) -> TypeGuard[float]:
    """True for a finite JSON number of a size that JSON readers agree about."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_INTEGER


def _as_it_is(known: RequestField, path: str, value: Any) -> Any:
    """What the route reads by itself."""
    return value


_READERS: Mapping[Kind, Callable[[RequestField, str, Any], Any]] = {
    Kind.TEXT: _of_type(str),
    Kind.FLAG: _of_type(bool),
    Kind.OBJECT: _of_type(dict),
    Kind.LIST: _of_type(list),
    Kind.INTEGER: _integer,
    Kind.NUMBER: _number,
    Kind.WORD: _word,
    Kind.TEXTS: _texts,
    Kind.INTEGERS: _integers,
    Kind.BIASES: _biases,
    Kind.PROMPT: _as_it_is,
    Kind.CONTENT: _as_it_is,
}
