"""The two kinds of row in the table: fields of ours, and fields that other servers have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any


class Place(StrEnum):
    """An object of a request whose keys are fields: the bodies by route, and what lies in them."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    GENERATE = "/generate"
    BATCH = "/generate/batch"
    MESSAGE = "a message"
    PART = "a part of a message's content"
    STREAM_OPTIONS = "stream_options"


OPENAI = (Place.CHAT, Place.COMPLETIONS)
GENERATING = (Place.CHAT, Place.COMPLETIONS, Place.GENERATE)
BODIES = (*GENERATING, Place.BATCH)
NOWHERE: Mapping[Place, Any] = MappingProxyType({})


class Kind(StrEnum):
    """What a value must be; the words that an error says."""

    TEXT = "a string"
    FLAG = "true or false"
    INTEGER = "an integer"
    NUMBER = "a number"
    WORD = "one of several words"
    TEXTS = "a string or a list of strings"
    INTEGERS = "a list of integers"
    BIASES = "an object from token ids to numbers"
    OBJECT = "an object"
    LIST = "a list"
    PROMPT = "a text, a list of texts, token ids or a list of token id lists"
    CONTENT = "a string or a list of text parts"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestField:
    """A field of ours.

    `name` is ours, as `SamplingParams`, `GenerationRequest` and the protos have it; `names` are
    those it has in each place, the one to recommend first. `proto`: fields of `millrace.v1` that
    carry it. `low` to `high` is allowed, without `low` itself if `is_low_open`. `default` says
    what holds if it is absent, `neutral` the value that means the same, if there is one.
    `spellings`: values that mean another one, None for absent, because other servers say it so.
    `instead` says what to do in a place that lacks the field. `changes_answer` is False for what
    only concerns how the answer is served.
    """

    name: str
    kind: Kind
    meaning: str
    names: Mapping[Place, tuple[str, ...]]
    default: str
    proto: tuple[str, ...] = ()
    low: int | float | None = None
    high: int | float | None = None
    is_low_open: bool = False
    choices: tuple[str, ...] = ()
    neutral: Any = None
    spellings: tuple[tuple[Any, Any], ...] = ()
    hint: str = ""
    instead: Mapping[Place, str] = field(default_factory=lambda: NOWHERE)
    changes_answer: bool = True

    def meant(self, value: Any) -> Any:
        """The value that `value` is another spelling of, itself if it is none."""
        for said, ours in self.spellings:
            if _is_same(value, said):
                return ours
        return value

    @property
    def all_names(self) -> frozenset[str]:
        """Every name it has anywhere, the protos included."""
        given = {name for names in self.names.values() for name in names}
        return frozenset(given | {path.partition(".")[2] for path in self.proto})


def at(places: tuple[Place, ...], *names: str) -> Mapping[Place, tuple[str, ...]]:
    """The same names in several places."""
    return MappingProxyType(dict.fromkeys(places, names))


@dataclass(frozen=True, slots=True)
class ForeignField:
    """A field of another server.

    It is refused, except with a value in `nothing`, which asks for nothing, or in `tolerated`,
    which is ignored and told. A harmless one is ignored and told with any value that asks for
    something. `say` is what to say here instead, `feature` what it would need, for the error.
    `same_as`: our field whose value asks for nothing, such as n for best_of.
    """

    name: str
    servers: str
    meaning: str
    feature: str = ""
    say: str = ""
    nothing: tuple[Any, ...] = ()
    tolerated: tuple[Any, ...] = ()
    is_harmless: bool = False
    same_as: str = ""
    places: tuple[Place, ...] = BODIES

    def asks_for_nothing(self, value: Any, ours: Mapping[str, Any]) -> bool:
        """True if the request means the same without it; `ours` are the other fields."""
        same = (ours.get(self.same_as) or 1,) if self.same_as else ()
        return is_among(value, (*self.nothing, *same))

    def is_ignored(self, value: Any) -> bool:
        """True if the request is answered all the same, and told of it."""
        return self.is_harmless or is_among(value, self.tolerated)


# What asks for nothing unless a field says otherwise.
EMPTY: tuple[Any, ...] = (False, "", [], {})


def refused(
    name: str,
    servers: str,
    meaning: str,
    *,
    feature: str = "",
    say: str = "",
    off: tuple[Any, ...] = (),
    only: tuple[Any, ...] = (),
    tolerated: tuple[Any, ...] = (),
    same_as: str = "",
    places: tuple[Place, ...] = BODIES,
) -> ForeignField:
    """A field that changes the answer. `off` asks for nothing too; `only`: nothing else does."""
    nothing = only or (*EMPTY, *off)
    return ForeignField(
        name, servers, meaning, feature, say, nothing, tolerated, False, same_as, places
    )


def harmless(
    name: str, servers: str, meaning: str, places: tuple[Place, ...] = BODIES
) -> ForeignField:
    """A field that an answer does not depend on."""
    return ForeignField(name, servers, meaning, nothing=EMPTY, is_harmless=True, places=places)


class FieldNames(dict[str, str]):
    """Our name of a field to the one that the client used; a name that is not there is its own."""

    def __missing__(self, name: str) -> str:
        return name


def is_among(value: Any, values: Iterable[Any]) -> bool:
    """As `in`, but true and false are no numbers."""
    return any(_is_same(value, each) for each in values)


def _is_same(value: Any, other: Any) -> bool:
    return bool(value == other) and isinstance(value, bool) is isinstance(other, bool)


_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def snake_case(name: str) -> str:
    """`maxTokens`, `max-tokens` and `Max_Tokens` as `max_tokens`."""
    return _HUMP.sub("_", name).replace("-", "_").lower()


def camel_case(name: str) -> str:
    """`max_tokens` as `maxTokens`."""
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)
