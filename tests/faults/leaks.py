"""What a process holds beside its requests, before and after: tasks, descriptors, objects."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from dataclasses import dataclass

from millrace.gateway.live_request import LiveRequest
from millrace.gateway.record import RequestRecord
from millrace.scheduler.ledger import LedgerEntry
from millrace.scheduler.sequence import Sequence
from millrace.worker.engine_loop import Session
from tests.faults.descriptors import Descriptors

WAIT_S = 10.0
# One each per request, or per choice of one; a session is one owner's use of a worker.
PER_REQUEST = (LiveRequest, RequestRecord, LedgerEntry, Sequence)
# Loops that wait for the next one still name the last one.
NUM_LAST_ONES = 3


@dataclass(frozen=True)
class Baseline:
    """Counts of a quiet process; take it when every connection has been made."""

    tasks: Counter[str]
    descriptors: Descriptors
    num_sessions: int

    @classmethod
    def take(cls) -> Baseline:
        return cls(_tasks(), Descriptors.now(), _num_objects(Session))

    async def check(self) -> None:
        """Waits for what is on its way out; then nothing may be there that was not before."""
        try:
            async with asyncio.timeout(WAIT_S):
                while self._left():  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"left behind: {self._left()}") from None
        await self.descriptors.check()

    def _left(self) -> dict[str, int]:
        gc.collect()
        counts: dict[str, int] = dict(_tasks() - self.tasks)
        counts["sessions"] = _num_objects(Session) - self.num_sessions
        for kind in PER_REQUEST:
            counts[kind.__qualname__] = _num_objects(kind) - NUM_LAST_ONES
        return {name: count for name, count in counts.items() if count > 0}


def _tasks() -> Counter[str]:
    """Running tasks by what they run."""
    return Counter(
        getattr(task.get_coro(), "__qualname__", repr(task)) for task in asyncio.all_tasks()
    )


def _num_objects(kind: type) -> int:
    return sum(type(each) is kind for each in gc.get_objects())
