"""A request as it lies on the intake queue."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from .sampling import SamplingSpec

SCHEMA_VERSION = 1


class Priority(IntEnum):
    """Which waiting requests go first; numbers as in `millrace.v1.Priority`."""

    HIGH = 1
    NORMAL = 2
    LOW = 3

    @property
    def subject_token(self) -> str:
        """Its token in NATS subjects."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class QueuedRequest:
    """Everything a scheduler needs to run a request; every sampling value is resolved."""

    request_id: str
    gateway_id: str
    model: str
    prompt_token_ids: list[int]
    sampling: SamplingSpec
    stop_token_ids: tuple[int, ...]
    max_tokens: int
    num_choices: int
    priority: Priority
    deadline_unix_ms: int
    arrival_unix_ns: int
    tenant: str = ""
    traceparent: str = ""
