"""How tokens are drawn: public parameters, validated once, and a sequence's resolved spec."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import InvalidRequest

MAX_LOGIT_BIAS_ENTRIES = 1024
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 1024
MAX_STOP_TOKEN_IDS = 64
MAX_TOP_LOGPROBS = 20
MAX_NUM_CHOICES = 16
MAX_SEED = 2**64 - 1


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
class SamplingParams:
    """The sampling part of a public request; raises `InvalidRequest` for a value out of range."""

    max_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    top_logprobs: int | None = None
    num_choices: int = 1

    def __post_init__(self) -> None:
        _check_range("temperature", self.temperature, 0.0, 2.0)
        _check_range("top_p", self.top_p, 0.0, 1.0, low_open=True)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("repetition_penalty", self.repetition_penalty, 0.0, 2.0, low_open=True)
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_range("top_k", self.top_k, 0, 2**31 - 1)
        _check_range("num_choices", self.num_choices, 1, MAX_NUM_CHOICES)
        if self.max_tokens is not None:
            _check_range("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _check_range("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens {self.min_tokens} is over max_tokens {self.max_tokens}",
                field="min_tokens",
            )
        if self.seed is not None:
            _check_range("seed", self.seed, 0, MAX_SEED)
        if self.top_logprobs is not None:
            _check_range("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS)
        _check_count("logit_bias", len(self.logit_bias), MAX_LOGIT_BIAS_ENTRIES)
        for _, bias in self.logit_bias:
            _check_range("logit_bias", bias, -100.0, 100.0)
        _check_count("stop", len(self.stop), MAX_STOP_STRINGS)
        for stop in self.stop:
            if not 1 <= len(stop) <= MAX_STOP_STRING_CHARS:
                raise InvalidRequest(
                    f"a stop string has {len(stop)} characters; allowed are 1 to "
                    f"{MAX_STOP_STRING_CHARS}",
                    field="stop",
                )
        _check_count("stop_token_ids", len(self.stop_token_ids), MAX_STOP_TOKEN_IDS)

    @property
    def is_deterministic(self) -> bool:
        """True where the same request always gives the same text: greedy, or with a given seed."""
        return self.temperature == 0.0 or self.seed is not None

    def spec(self, seed: int) -> SamplingSpec:
        """The resolved spec of a sequence, with the seed in force."""
        return SamplingSpec(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            seed=seed,
            top_logprobs=self.top_logprobs,
            min_tokens=self.min_tokens,
        )


def _check_range(
    name: str, value: float, low: float, high: float, *, low_open: bool = False
) -> None:
    below = value <= low if low_open else value < low
    if not math.isfinite(value) or below or value > high:
        left = "over " if low_open else ""
        raise InvalidRequest(
            f"{name} is {value}; allowed is {left}{_number(low)} to {_number(high)}",
            field=name,
            metadata={"value": str(value), "min": _number(low), "max": _number(high)},
        )


def _number(value: float) -> str:
    """As people write it: whole numbers in full, however large."""
    return str(value) if isinstance(value, int) else f"{value:g}"


def _check_count(name: str, count: int, limit: int) -> None:
    if count > limit:
        raise InvalidRequest(
            f"{name} has {count} entries; the limit is {limit}",
            field=name,
            metadata={"value": str(count), "max": str(limit)},
        )
