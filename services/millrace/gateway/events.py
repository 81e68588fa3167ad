"""What happens to a request, as both edges see it: Started first, Finished last."""

from __future__ import annotations

from dataclasses import dataclass

from millrace.core.sampling import SamplingDefaults
from millrace.core.tokens import FinishReason


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its exact bytes and its log-probability."""

    token_id: int
    raw: bytes
    logprob: float

    @property
    def text(self) -> str:
        """The token as text; a piece of a character shows as U+FFFD."""
        return self.raw.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """One position of the output: the chosen token, and the likeliest ones, best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Started:
    """The request was accepted. `is_cached`: the answer comes from the response cache.

    `sampling`: the values in force that the model may have chosen.
    """

    request_id: str
    model: str
    revision: str
    num_prompt_tokens: int
    seed: int
    is_cached: bool
    created_unix_s: int
    sampling: SamplingDefaults = SamplingDefaults()


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of one choice and the tokens behind it; the text may be empty."""

    choice: int
    text: str
    token_ids: list[int]
    logprobs: tuple[PositionLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class ChoiceFinished:
    """One choice has ended; the others may go on."""

    choice: int
    finish_reason: FinishReason
    matched_stop: str | None
    num_output_tokens: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens; `num_cached_tokens` of the prompt came from the prefix cache."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Times since arrival at the gateway, nanoseconds; 0 where it never came to that."""

    queue_ns: int
    time_to_first_token_ns: int
    total_ns: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The request has ended: the last event."""

    choices: tuple[ChoiceFinished, ...]
    usage: Usage
    timings: Timings
    is_cached: bool


Event = Started | Delta | ChoiceFinished | Finished
