"""Which requests take steps or workers down with them.

A request cannot be told from its batch-mates by one fault. So each fault counts for everybody who
was in a row; who has been present at two runs alone from then on, and who meets one more alone is
proved to be the cause. Batch-mates lose nothing but time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

MAX_SHARED_FAULTS = 2


class Fault(Enum):
    """What happened to the rows of a worker; the value is what a dead letter says of it."""

    WORKER_DEATH = "worker death"
    FAILED_STEP = "failed step"


@dataclass(slots=True)
class Suspicion:
    """The faults that one request was present at."""

    num_worker_deaths: int = 0
    num_failed_steps: int = 0

    def note(self, fault: Fault) -> None:
        """One more."""
        if fault is Fault.WORKER_DEATH:
            self.num_worker_deaths += 1
        else:
            self.num_failed_steps += 1

    @property
    def must_run_alone(self) -> bool:
        """True once it is in question, by either kind of fault."""
        return max(self.num_worker_deaths, self.num_failed_steps) >= MAX_SHARED_FAULTS

    @property
    def num_faults(self) -> int:
        """Of both kinds."""
        return self.num_worker_deaths + self.num_failed_steps

    def verdict(self, fault: Fault, detail: str) -> str:
        """What the client is told of the last one."""
        if fault is Fault.WORKER_DEATH:
            return f"the request ended {self.num_worker_deaths} workers, the last one alone"
        return (
            f"{self.num_failed_steps} steps with the request failed, the last one alone: "
            f"{detail or 'no reason given'}"
        )
