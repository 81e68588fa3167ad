"""What a request must keep to be put in line."""

from __future__ import annotations

from collections.abc import Collection

from millrace.core.errors import ContextLengthExceeded, InvalidRequest, Overloaded
from millrace.core.request import QueuedRequest

from .policy import SchedulerPolicy
from .waiting import WaitingQueue
from .worker_mirror import WorkerMirror

_MIN_RETRY_S, _MAX_RETRY_S = 1.0, 60.0


def check_length(request: QueuedRequest, workers: Collection[WorkerMirror]) -> None:
    """Raises where no prompt is there, or where no worker has room for it and one token more.

    Without workers only the former can be said.
    """
    num_tokens = len(request.prompt_token_ids)
    if not num_tokens:
        raise InvalidRequest("the prompt has no tokens", field="prompt")
    limit = max((worker.max_len for worker in workers), default=num_tokens + 1) - 1
    if num_tokens > limit:
        raise ContextLengthExceeded(
            f"the prompt has {num_tokens} tokens; the limit is {limit}",
            field="prompt",
            metadata={"value": str(num_tokens), "max": str(limit)},
        )


def check_queue(
    request: QueuedRequest,
    waiting: WaitingQueue,
    policy: SchedulerPolicy,
    predicted_wait_s: float,
) -> None:
    """Raises `Overloaded` where the queue has no room for `request`."""
    num_tokens = waiting.num_tokens + len(request.prompt_token_ids)
    limits = (
        ("requests", len(waiting) + 1, policy.max_num_waiting),
        ("tokens", num_tokens, policy.max_waiting_tokens),
    )
    for unit, count, limit in limits:
        if count > limit:
            raise Overloaded(
                f"the queue would hold {count} {unit}; the limit is {limit}",
                metadata={"value": str(count), "max": str(limit)},
                retry_after_s=min(max(predicted_wait_s, _MIN_RETRY_S), _MAX_RETRY_S),
            )
