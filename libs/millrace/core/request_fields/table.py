"""The table by place: what a name means there."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from .field import (
    BODIES,
    EMPTY,
    ForeignField,
    Place,
    RequestField,
    camel_case,
    is_among,
    snake_case,
)
from .foreign_prompt import FOREIGN_PROMPT
from .foreign_reply import FOREIGN_REPLY
from .foreign_sampling import FOREIGN_SAMPLING
from .foreign_service import FOREIGN_NESTED, FOREIGN_SERVICE
from .our_requests import BODY, NESTED, OPTIONS
from .our_sampling import SAMPLING

FIELDS: tuple[RequestField, ...] = (*SAMPLING, *OPTIONS, *BODY, *NESTED)
# Fields of the protos that only hold others.
PROTO_GROUPS = ("GenerateRequest.options", "ChatRequest.options", "RequestOptions.sampling")
FOREIGN: tuple[ForeignField, ...] = (
    *FOREIGN_SAMPLING,
    *FOREIGN_PROMPT,
    *FOREIGN_REPLY,
    *FOREIGN_SERVICE,
    *FOREIGN_NESTED,
)
# How alike two names are that count as one, misspelled; 1 is equal.
NEAR = 0.84
MAX_COMPARED_CHARS = 64


@dataclass(frozen=True, slots=True)
class PlaceTable:
    """One place's names: `ours`, those of other servers, and ours that belong elsewhere."""

    place: Place
    ours: Mapping[str, RequestField]
    foreign: Mapping[str, ForeignField]
    elsewhere: Mapping[str, RequestField]

    def nearest(self, name: str) -> str | None:
        """The name of ours that `name` may be a slip of, spelled as it is; None for none."""
        snake = snake_case(name[:MAX_COMPARED_CHARS])
        near = [snake] if snake in self.ours else _near(snake, self.ours)
        if not near:
            return None
        camel = camel_case(near[0])
        return camel if name != snake and camel in self.ours else near[0]

    def other(self, name: str) -> ForeignField | RequestField | None:
        """The field of another server, or of ours in another place, in whatever spelling."""
        for spelled in (name, snake_case(name[:MAX_COMPARED_CHARS])):
            if found := self.foreign.get(spelled) or self.elsewhere.get(spelled):
                return found
        return None

    def advice(self, name: str, found: RequestField) -> str:
        """What to say for `name`, which stands for `found` somewhere else."""
        if here := found.names.get(self.place):
            return f"there is no field {name} in {self.place}; say {here[0]}"
        if self.place is Place.BATCH and found.name != "stream":
            return f"{name} is no field of {self.place}; put it into each entry of requests"
        if instead := found.instead.get(self.place):
            return f"{name} is no field of {self.place}: {instead}"
        places = " and ".join(found.names)
        return f"{name} is no field of {self.place}; it is one of {places}"


def _near(name: str, names: Mapping[str, RequestField]) -> list[str]:
    return difflib.get_close_matches(name, names, n=1, cutoff=NEAR)


def is_nothing(found: RequestField, value: object) -> bool:
    """True if a field that belongs elsewhere asks for nothing."""
    return is_among(value, (*EMPTY, found.neutral))


def _table(place: Place) -> PlaceTable:
    ours = {name: field for field in FIELDS for name in field.names.get(place, ())}
    if place is Place.GENERATE:
        ours |= {camel_case(name): field for name, field in ours.items()}
    of_bodies = [field for field in FIELDS if not field.names.keys().isdisjoint(BODIES)]
    elsewhere = {
        name: field
        for field in (of_bodies if place in BODIES else ())
        for name in field.all_names
        if name not in ours
    }
    foreign = {field.name: field for field in FOREIGN if place in field.places}
    return PlaceTable(place, ours, foreign, elsewhere)


TABLES: Mapping[Place, PlaceTable] = {place: _table(place) for place in Place}
