"""Reading one object of a request by the table of fields: what it says, and what is ignored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from millrace.core.errors import InvalidRequest
from millrace.core.request_fields.field import (
    FieldNames,
    ForeignField,
    Place,
    RequestField,
)
from millrace.core.request_fields.ignored import MAX_NAMES, IgnoredFields
from millrace.core.request_fields.table import TABLES, PlaceTable, is_nothing

from .errors import unsupported_parameter
from .fields import missing_field, read_value, shown_value


@dataclass(slots=True)
class Given:
    """What an object says: values by our names, and the client's words for these."""

    values: dict[str, Any] = field(default_factory=dict)
    names: FieldNames = field(default_factory=FieldNames)

    def get(self, name: str, default: Any = None) -> Any:
        """The value, or `default` if it is absent."""
        return self.values.get(name, default)

    def require(self, name: str, path: str = "") -> Any:
        """The value; raises `InvalidRequest` if it is absent."""
        if name not in self.values:
            raise missing_field(path or name)
        return self.values[name]


def read_fields(
    place: Place, source: Mapping[str, Any], ignored: IgnoredFields, where: str = ""
) -> Given:
    """The fields of an object; null counts as absent, `where` precedes the names in errors.

    Raises `InvalidRequest` for a wrong value, for a field that would change the answer and is not
    done here, and for a likely slip. What is none of these goes into `ignored`.
    """
    table, given, others = TABLES[place], Given(), []
    for name, value in source.items():
        if value is None:
            continue
        known = table.ours.get(name)
        if known is None:
            others.append(name)
        else:
            _take(given, known, name, value, where)
    for name in others:
        _judge(table, name, source[name], given, ignored, where)
    return given


def _take(given: Given, known: RequestField, name: str, value: Any, where: str) -> None:
    if known.spellings and (value := known.meant(value)) is None:
        return
    path = where + name
    value = read_value(known, path, value)
    if known.name in given.values and given.values[known.name] != value:
        raise _given_twice(known, given, path, value)
    given.values[known.name] = value
    if name != known.name:
        given.names[known.name] = path


def _given_twice(known: RequestField, given: Given, path: str, value: Any) -> InvalidRequest:
    first = given.names[known.name]
    return InvalidRequest(
        f"{first} is {shown_value(given.values[known.name])} and {path} is {shown_value(value)}; "
        "give one of them",
        field=first,
    )


def _judge(
    table: PlaceTable,
    name: str,
    value: Any,
    given: Given,
    ignored: IgnoredFields,
    where: str,
) -> None:
    """A name that is none of ours in this place."""
    path, other = where + name, table.other(name)
    if isinstance(other, ForeignField):
        if other.asks_for_nothing(value, given.values):
            return
        if not other.is_ignored(value):
            raise unsupported_parameter(path, other.feature, other.say)
    elif other is not None:
        if is_nothing(other, value):
            return
        raise unsupported_parameter(path, advice=table.advice(name, other))
    elif ignored.num_unknown < MAX_NAMES and (near := table.nearest(name)):
        # Comparing takes a while: a body full of unknown names is not worth it.
        raise InvalidRequest(
            f"there is no field {path[:64]}; did you mean {near}?", field=path[:64]
        )
    ignored.add(path, is_harmless=other is not None)
