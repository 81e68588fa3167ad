"""What the scheduler tells the service around it."""

from __future__ import annotations

from dataclasses import dataclass, field

from millrace.core.dead_letter import DeadLetter
from millrace.core.errors import MillraceError
from millrace.core.loss import Loss
from millrace.core.tokens import Scheduled, TokenDelta


@dataclass(slots=True)
class StepOutcome:
    """What came of a result or of a worker's loss: tokens for the clients, and who is over.

    `finished` are requests whose every choice has ended with a finish reason in some delta;
    `failed` ones ended with an error instead. Aborted requests are in neither. `preempted` are the
    requests and choices whose rows the worker has given back, `lost_rows` those that have just lost
    their rows by a fault, which is `loss`. `requeued` are the requests that lost their worker, in
    order of arrival. `dead_letters` tell more of those in `failed` that were given up as harmful.
    `is_canary`: the step was for no request.
    """

    deltas: list[TokenDelta] = field(default_factory=list)
    scheduled: list[Scheduled] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    failed: list[tuple[str, MillraceError]] = field(default_factory=list)
    preempted: list[tuple[str, int]] = field(default_factory=list)
    requeued: list[str] = field(default_factory=list)
    lost_rows: list[tuple[str, int]] = field(default_factory=list)
    loss: Loss = Loss.BLOCKS
    dead_letters: list[DeadLetter] = field(default_factory=list)
    is_canary: bool = False


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """Counters of one worker since it was added, and what it holds now."""

    worker_id: str
    num_steps: int
    num_decode_steps: int
    num_decode_rows: int
    num_prefill_tokens: int
    num_cached_tokens: int
    num_admissions: int
    num_live_rows: int
    num_used_blocks: int
    num_free_blocks: int
    num_blocks: int
    predicted_step_ms: float


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """Counters since start, and the queues now: `num_waiting` and `num_running` count sequences.

    `num_workers` counts those that take requests; `workers` are all.
    """

    num_workers: int
    num_requests: int
    num_waiting: int
    num_waiting_tokens: int
    num_running: int
    num_blocks: int
    num_free_blocks: int
    num_preemptions: int
    num_finished: int
    workers: tuple[WorkerStats, ...]
