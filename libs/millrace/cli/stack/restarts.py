"""When a process that ended is started again."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How long to wait before a restart, and how many ends in a while mean that a process fails."""

    first_delay_s: float = 0.5
    max_delay_s: float = 10.0
    window_s: float = 60.0
    max_exits: int = 5

    def delay_s(self, num_exits: int) -> float:
        """Seconds before the next start, after `num_exits` ends inside the window."""
        return float(min(self.first_delay_s * 2 ** (num_exits - 1), self.max_delay_s))


@dataclass(slots=True)
class Restarts:
    """The recent ends of one process; a failing one is still started again."""

    policy: RestartPolicy
    _exits: deque[float] = field(default_factory=deque)

    @property
    def is_failing(self) -> bool:
        """True if it ended too often of late."""
        return len(self._exits) >= self.policy.max_exits

    @property
    def num_exits(self) -> int:
        """Ends inside the window."""
        return len(self._exits)

    def ended(self, now_s: float) -> float:
        """Notes an end; returns the seconds to wait before the next start."""
        self._exits.append(now_s)
        while now_s - self._exits[0] > self.policy.window_s:
            self._exits.popleft()
        return self.policy.max_delay_s if self.is_failing else self.policy.delay_s(self.num_exits)
