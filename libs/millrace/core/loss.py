"""Why a sequence lost its row: the closed set that events and metrics carry."""

from __future__ import annotations

from enum import StrEnum


class Loss(StrEnum):
    """Values of the attribute and of the label `reason`."""

    BLOCKS = "blocks"  # the cache was full, and others came first
    STEP_FAILED = "step_failed"
    OUT_OF_MEMORY = "out_of_memory"  # a failed step too, which is halved
    WORKER_LOST = "worker_lost"  # its stream broke
    WORKER_FROZEN = "worker_frozen"  # its stream stood still, and was broken off
    WORKER_LEFT = "worker_left"  # it ended in order, or another scheduler took it
    SCHEDULER_LOST = "scheduler_lost"  # an earlier scheduler held the row

    @property
    def is_death(self) -> bool:
        """True if the worker died of it, which counts against the requests it was running."""
        return self in (Loss.WORKER_LOST, Loss.WORKER_FROZEN)
