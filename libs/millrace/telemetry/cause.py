"""Where the time of a request can go, and what can go wrong with it."""

from __future__ import annotations

from enum import StrEnum

from millrace.core.errors import (
    Conflict,
    ContextLengthExceeded,
    InvalidRequest,
    PayloadTooLarge,
    RequestNotFound,
    UnknownModel,
    Unsupported,
)
from millrace.core.loss import Loss


class Cause(StrEnum):
    """Where the time went; the last two of a request that was never accepted."""

    WORKER_LOST = "worker lost"
    WORKER_FROZEN = "worker frozen"
    WORKER_LEFT = "worker left"
    STEP_FAILED = "step failed"
    SCHEDULER_LOST = "scheduler lost"
    PART_AWAY = "part away"
    PREEMPTION = "preemption"
    QUEUE = "queue"
    PREFILL = "prefill"
    WORKER = "worker"
    TOKENIZER = "tokenizer"
    CACHE = "cache"
    INTAKE = "intake"
    CLIENT = "slow client"
    SHARED = "shared run"
    GATEWAY = "gateway"
    NONE = "no single cause"
    CLIENT_ERROR = "client error"
    REFUSED = "refused"


CAUSE_OF_LOSS = {
    Loss.WORKER_LOST: Cause.WORKER_LOST,
    Loss.WORKER_FROZEN: Cause.WORKER_FROZEN,
    Loss.WORKER_LEFT: Cause.WORKER_LEFT,
    Loss.STEP_FAILED: Cause.STEP_FAILED,
    Loss.OUT_OF_MEMORY: Cause.STEP_FAILED,
    Loss.SCHEDULER_LOST: Cause.SCHEDULER_LOST,
    Loss.BLOCKS: Cause.PREEMPTION,
}

# Reasons of errors that only the client can cure.
CLIENT_REASONS = frozenset(
    error.reason
    for error in (
        InvalidRequest,
        ContextLengthExceeded,
        PayloadTooLarge,
        UnknownModel,
        Unsupported,
        Conflict,
        RequestNotFound,
    )
)
