"""How fast a model's requests end, as this gateway sees it, and the waits that follow from it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from millrace.core.membership import SchedulerStatus

WINDOW_S = 30.0
# A rate over less time than this says nothing.
MIN_SPAN_S = 1.0
# Fewer ends than this are no ground to refuse a request.
MIN_FINISHED = 8
MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class Forecast:
    """`wait_s`: until a request that comes now gets its first step."""

    wait_s: float
    num_waiting: int
    finished_per_s: float


@dataclass(frozen=True, slots=True)
class Load:
    """The requests that a gateway holds, of those that it may; `finished_per_s` over all models."""

    max_in_flight: int
    num_in_flight: int
    finished_per_s: float

    @property
    def num_left(self) -> int:
        """Requests that would be taken now."""
        return max(0, self.max_in_flight - self.num_in_flight)

    @property
    def drained_in_s(self) -> float | None:
        """Until all that are held now have ended; None where nothing has ended lately."""
        if not self.num_in_flight:
            return 0.0
        return self.num_in_flight / self.finished_per_s if self.finished_per_s else None


class DrainRate:
    """Ends per second over a sliding window, by model; `clock` gives seconds and never goes back.

    With several gateways each sees only its own requests end, so a queue is taken as its share of
    what waits and runs.
    """

    def __init__(
        self, *, window_s: float = WINDOW_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._window_s = window_s
        self._clock = clock
        self._ends: dict[str, deque[float]] = {}

    def on_finished(self, model: str) -> None:
        """A request of the model has ended without an error."""
        self._ends.setdefault(model, deque()).append(self._clock())
        self._num_recent(model)

    def per_s(self, model: str) -> float:
        """Ends per second; 0 where there was none within the window."""
        num_ends = self._num_recent(model)
        if not num_ends:
            return 0.0
        return num_ends / max(MIN_SPAN_S, self._clock() - self._ends[model][0])

    def total_per_s(self) -> float:
        """Of all models."""
        return sum(self.per_s(model) for model in self._ends)

    def forecast(
        self, model: str, status: SchedulerStatus | None, num_live: int
    ) -> Forecast | None:
        """None where too little is known. `num_live`: the model's requests of this gateway."""
        per_s = self.per_s(model)
        if status is None or self._num_recent(model) < MIN_FINISHED:
            return None
        return Forecast(_own_queue(status, num_live) / per_s, status.num_waiting, per_s)

    def retry_after_s(
        self, model: str, status: SchedulerStatus | None, num_live: int
    ) -> float | None:
        """How long the queue takes to drain, 1 to 60 s; None where nothing has ended lately."""
        per_s = self.per_s(model)
        if not per_s:
            return None
        num_ahead = 0.0 if status is None else _own_queue(status, num_live)
        return clamped(max(1.0, num_ahead) / per_s)

    def _num_recent(self, model: str) -> int:
        ends = self._ends.get(model)
        if ends is None:
            return 0
        oldest = self._clock() - self._window_s
        while ends and ends[0] < oldest:
            ends.popleft()
        return len(ends)


def clamped(retry_after_s: float) -> float:
    """Within 1 to 60 s."""
    return min(max(retry_after_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)


def _own_queue(status: SchedulerStatus, num_live: int) -> float:
    num_known = status.num_waiting + status.num_running
    share = min(1.0, num_live / num_known) if num_known else 1.0
    return status.num_waiting * share
