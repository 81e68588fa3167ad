"""How slowly a request's body may come."""

from __future__ import annotations


class BodyClock:
    """A body may stand still for `timeout_s`; in all it may take `timeout_s` and the time that its
    bytes take at `min_rate` bytes per second. Times are the caller's.
    """

    def __init__(self, timeout_s: float, min_rate: float, now_s: float) -> None:
        self._timeout_s = timeout_s
        self._min_rate = min_rate
        self.restart(now_s)

    def restart(self, now_s: float) -> None:
        """Counts anew: the client was made to wait until now."""
        self.started_s = self._came_s = now_s
        self._num_bytes = 0

    def on_bytes(self, num_bytes: int, now_s: float) -> None:
        """Some of it has come."""
        self._num_bytes += num_bytes
        self._came_s = now_s

    @property
    def deadline_s(self) -> float:
        """When the next bytes must have come."""
        slowest_s = self.started_s + self._num_bytes / self._min_rate
        return min(self._came_s, slowest_s) + self._timeout_s
