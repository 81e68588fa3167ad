"""A worker's canaries: prompts of one token, sent through the batch path to see one come back.

    due ── admitted in P ── its token in the result of P ── released in Q ── result of Q: seat free

A worker is proven by the first one, and takes requests only then; while it has nothing else to do
it must sing again from time to time. No client hears of it, and no figure of requests counts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

from millrace.core.errors import InternalError
from millrace.core.step import CANARY_ROW_EPOCH, StepPlan, StepResult, canary_admission

from .block_manager import BlockManager
from .row import IssuedPlan

NS_PER_S = 1_000_000_000


@dataclass(slots=True)
class _Seat:
    """The row and the block of a canary on its way, and the plans that give and take them."""

    row: int
    block: int
    admitted_in: int
    has_sung: bool = False
    released_in: int = 0


class Canaries:
    """Those of one worker, at most one at a time, in rows and blocks of its.

    `every_s` 0: there are none, and the worker counts as proven.
    """

    def __init__(self, every_s: float, blocks: BlockManager, free_rows: list[int]) -> None:
        self._every_ns = round(every_s * NS_PER_S)
        self._blocks = blocks
        self._free_rows = free_rows
        self._seat: _Seat | None = None
        self._heard_ns = 0
        self.is_proven = not self._every_ns

    @property
    def is_used(self) -> bool:
        """True where this worker is to have any."""
        return bool(self._every_ns)

    @property
    def held(self) -> tuple[int, int] | None:
        """The row and the block of one under way."""
        return None if self._seat is None else (self._seat.row, self._seat.block)

    def is_due(self, now_ns: int) -> bool:
        """True where a worker that has nothing to do owes one."""
        if self._seat is not None:
            return False
        if not self.is_proven:
            return True
        return self.is_used and now_ns - self._heard_ns >= self._every_ns

    def admit(self, step: IssuedPlan) -> None:
        """Has the plan be a canary's and nobody else's."""
        (block,) = self._blocks.allocate(1)
        row = heappop(self._free_rows)
        self._seat = _Seat(row, block, step.plan.plan_id)
        step.is_canary = True
        step.plan.admissions.append(canary_admission(row, block))
        step.plan.chunks.append((row, 1))

    def release(self, plan: StepPlan) -> None:
        """Has the plan take the row of one that has sung."""
        seat = self._seat
        if seat is not None and seat.has_sung and not seat.released_in:
            seat.released_in = plan.plan_id
            plan.release_rows.append(seat.row)
            heappush(self._free_rows, seat.row)

    def heard(self, now_ns: int) -> None:
        """A result of any kind has come."""
        self._heard_ns = now_ns

    def settle(self, worker_id: str, result: StepResult) -> None:
        """Raises `InternalError` where the step was a canary's and no token came of it."""
        seat = self._seat
        if seat is None:
            return
        if result.plan_id == seat.admitted_in:
            if not any(token.row_epoch == CANARY_ROW_EPOCH for token in result.tokens):
                raise InternalError(f"worker {worker_id} cannot generate: {result.why_no_token}")
            self.is_proven = seat.has_sung = True
        elif result.plan_id == seat.released_in:
            self._blocks.free([seat.block])
            self._seat = None
