"""When the scheduler last held anything of each request: a place in line, a row, a block."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from millrace.scheduler.service import SchedulerService
from tests.faults.loop_clock import TURN_S, LoopClock


@dataclass
class Hold:
    """The last look that found a request, known by its seed, and where it had rows until then."""

    seen_s: float = 0.0
    num_steps: dict[str, int] = field(default_factory=dict)
    worker_ids: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Mark:
    """A moment: the loop's clock, and how many steps each worker had done."""

    at_s: float
    num_steps: dict[str, int]


class HoldWatch:
    """Looks every few milliseconds while it runs. Requests must have seeds of their own."""

    def __init__(self, service: SchedulerService) -> None:
        self._service = service
        self._clock = LoopClock()
        self._holds: dict[int, Hold] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._clock.turn()
            self._look()
            await asyncio.sleep(TURN_S)

    def mark(self) -> Mark:
        return Mark(self._clock.now_s, self._num_steps())

    def held_after(self, seed: int, mark: Mark) -> tuple[float, int]:
        """For how many seconds, and how many steps of its worker, a request was held after then."""
        hold = self._holds.get(seed)
        if hold is None:
            return 0.0, 0
        steps = [
            hold.num_steps.get(worker_id, 0) - mark.num_steps.get(worker_id, 0)
            for worker_id in hold.worker_ids or hold.num_steps
        ]
        return max(0.0, hold.seen_s - mark.at_s), max(0, *steps, 0)

    def _look(self) -> None:
        num_steps, now_s = self._num_steps(), self._clock.now_s
        scheduler = self._service.scheduler
        seeds = {entry.request.sampling.seed for entry in self._service.ledger}
        seeds.update(r.queued.sampling.seed for r in scheduler._requests.values())
        for worker_id, worker in scheduler._workers.items():
            for row in worker.rows.values():
                seed = row.sequence.request.queued.sampling.seed
                seeds.add(seed)
                self._holds.setdefault(seed, Hold()).worker_ids.add(worker_id)
        for seed in seeds:
            hold = self._holds.setdefault(seed, Hold())
            hold.seen_s, hold.num_steps = now_s, num_steps

    def _num_steps(self) -> dict[str, int]:
        workers = self._service.scheduler._workers.items()
        return {worker_id: worker._num_steps for worker_id, worker in workers}
