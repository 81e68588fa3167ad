"""Tokens on their way from the scheduler to a gateway."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum


class FinishReason(IntEnum):
    """Why a sequence ended; numbers as in `millrace.v1.FinishReason`, 0 while it goes on."""

    NONE = 0
    STOP = 1
    LENGTH = 2
    ABORT = 3
    ERROR = 4


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position: of the chosen token, and of the likeliest, in order."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()

    @property
    def is_defined(self) -> bool:
        """False for what no model means: not-a-number, or certainty beyond 1."""
        return self.chosen < math.inf and all(logprob < math.inf for _, logprob in self.top)


@dataclass(slots=True)
class TokenDelta:
    """One choice's new tokens inside a frame.

    `start_index` is the index of the first of `token_ids` in the output; `logprobs` is empty or has
    one entry per token.
    """

    request_id: str
    choice: int
    start_index: int
    token_ids: list[int]
    finish: FinishReason = FinishReason.NONE
    logprobs: list[TokenLogprobs] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A request has its first row."""

    request_id: str
    scheduled_unix_ns: int
    num_cached_tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A request has ended with an error; `code` is a gRPC status code number."""

    request_id: str
    code: int
    reason: str
    message: str


@dataclass(slots=True)
class TokenFrame:
    """What one step has for one gateway; `attempt` is the owner epoch of the scheduler."""

    attempt: int
    deltas: list[TokenDelta] = field(default_factory=list)
    scheduled: list[Scheduled] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)

    def is_empty(self) -> bool:
        """True where there is nothing to send."""
        return not (self.deltas or self.scheduled or self.failed)
