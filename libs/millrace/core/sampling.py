"""How tokens are drawn: public parameters, validated once, and a sequence's resolved spec."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from .errors import InvalidRequest
from .request_fields.field import FieldNames, RequestField
from .request_fields.our_sampling import (
    MAX_LOGIT_BIAS_ENTRIES,
    MAX_SEED,
    MAX_STOP_STRING_CHARS,
    MAX_STOP_STRINGS,
    MAX_STOP_TOKEN_IDS,
    SAMPLING,
)

NUM_DRAWN_BITS = 53


@dataclass(frozen=True, slots=True)
class SamplingSpec:
    """What the sampler needs for one sequence; every value resolved, no default left downstream."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    top_logprobs: int | None = None
    min_tokens: int = 0

    @property
    def is_greedy(self) -> bool:
        """True where the likeliest token is taken and no random number is drawn."""
        return self.temperature == 0.0

    @property
    def has_penalties(self) -> bool:
        """True where the logits depend on the tokens so far."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What a model wants if a request is silent; None: the default of the OpenAI API."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def filled(self) -> SamplingDefaults:
        """The same with every value given."""
        return SamplingDefaults(**{**_NEUTRAL, **self.given()})

    def given(self) -> dict[str, Any]:
        """The values that are there, by name."""
        values = ((name, getattr(self, name)) for name in _DEFAULTED)
        return {name: value for name, value in values if value is not None}


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """The sampling part of a public request; raises `InvalidRequest` for a value out of range.

    None in a field that `SamplingDefaults` has leaves it to the model, until `resolved`. `names`
    are the client's words for ours, for errors.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    top_logprobs: int | None = None
    num_choices: int = 1
    names: FieldNames = field(default_factory=FieldNames, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name, known in _WITH_RANGE:
            value = getattr(self, name)
            if value is not None:
                check_range(known, value, self.names)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"{self.names['min_tokens']} {self.min_tokens} is over "
                f"{self.names['max_tokens']} {self.max_tokens}",
                field=self.names["min_tokens"],
            )
        if self.logit_bias:
            self._check_count("logit_bias", MAX_LOGIT_BIAS_ENTRIES)
            for token_id, bias in self.logit_bias:
                check_range(_BIAS, bias, self.names, f"[{token_id}]")
        if self.stop:
            self._check_count("stop", MAX_STOP_STRINGS)
            self._check_stop_strings()
        if self.stop_token_ids:
            self._check_count("stop_token_ids", MAX_STOP_TOKEN_IDS)

    @property
    def is_deterministic(self) -> bool:
        """True where the same request always gives the same text: greedy, or with a given seed.

        Known once the parameters are resolved.
        """
        return self.temperature == 0.0 or self.seed is not None

    def resolved(self, defaults: SamplingDefaults = SamplingDefaults()) -> SamplingParams:
        """The same with every value given: as asked, else the model's, else the OpenAI API's."""
        silent = [name for name in _DEFAULTED if getattr(self, name) is None]
        if not silent:
            return self
        values = {**_NEUTRAL, **defaults.given()}
        return replace(self, **{name: values[name] for name in silent})

    def in_force(self) -> SamplingDefaults:
        """The values that the model may have chosen."""
        return SamplingDefaults(*(getattr(self, name) for name in _DEFAULTED))

    def canonical(self) -> dict[str, Any]:
        """What an answer depends on, equal for requests that mean the same."""
        whole = self.resolved()
        values = {known.name: getattr(whole, known.name) for known in SAMPLING}
        values["logit_bias"] = sorted(self.logit_bias)
        values["seed"] = None if self.seed is None else unsigned_seed(self.seed)
        return values

    def spec(self, seed: int) -> SamplingSpec:
        """The resolved spec of a sequence, with the seed in force."""
        whole = self.resolved()
        values: dict[str, Any] = {name: getattr(whole, name) for name in _OF_SPEC}
        return SamplingSpec(**values, seed=unsigned_seed(seed))

    def _check_count(self, name: str, limit: int) -> None:
        count = len(getattr(self, name))
        if count > limit:
            raise InvalidRequest(
                f"{self.names[name]} has {count} entries; the limit is {limit}",
                field=self.names[name],
                metadata={"value": str(count), "max": str(limit)},
            )

    def _check_stop_strings(self) -> None:
        for index, stop in enumerate(self.stop):
            if not 1 <= len(stop) <= MAX_STOP_STRING_CHARS:
                raise InvalidRequest(
                    f"{self.names['stop']}[{index}] has {len(stop)} characters; allowed are 1 to "
                    f"{MAX_STOP_STRING_CHARS}",
                    field=self.names["stop"],
                )


def draw_seed() -> int:
    """A seed of 53 bits: readers of JSON that know only doubles can send it again exactly."""
    return secrets.randbits(NUM_DRAWN_BITS)


def unsigned_seed(seed: int) -> int:
    """The 64 bits of a seed: a negative one is the two's complement of another."""
    return seed & MAX_SEED


def check_range(
    known: RequestField, value: float, names: Mapping[str, str], entry: str = ""
) -> None:
    """Raises `InvalidRequest` for a value beyond the field's range; `entry` follows its name."""
    low, high = known.low, known.high
    is_below = low is not None and (value <= low if known.is_low_open else value < low)
    is_above = high is not None and value > high
    # In this order: an integer may be too large to be asked whether it is finite.
    if is_below or is_above or not math.isfinite(value):
        allowed = _allowed(known)
        hint = f"; {known.hint}" if known.hint else ""
        raise InvalidRequest(
            f"{names[known.name]}{entry} is {shown_number(value)}; allowed is {allowed}{hint}",
            field=names[known.name],
            metadata={
                "value": shown_number(value),
                "min": shown_number(known.low),
                "max": shown_number(known.high),
            },
        )


def _allowed(known: RequestField) -> str:
    left = f"over {known.low}" if known.is_low_open else f"{known.low}"
    return f"{left} to {known.high}" if known.high is not None else f"at least {left}"


def shown_number(value: float | None) -> str:
    """As people write it: whole numbers in full, however large, and without a point."""
    return "" if value is None else str(value).removesuffix(".0")


_DEFAULTED = tuple(each.name for each in fields(SamplingDefaults))
_OF_SPEC = tuple(each.name for each in fields(SamplingSpec) if each.name != "seed")
_NEUTRAL: dict[str, Any] = {each.name: each.neutral for each in SAMPLING if each.name in _DEFAULTED}
_BIAS = next(each for each in SAMPLING if each.name == "logit_bias")
_WITH_RANGE = tuple(
    (each.name, each) for each in SAMPLING if each.low is not None and each is not _BIAS
)
