"""Whether a worker takes a waiting sequence now: each rule is one predicate."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum, auto

from .placement import PlacementTurn
from .policy import SchedulerPolicy
from .sequence import Sequence
from .waiting import WaitingQueue
from .worker_mirror import WorkerMirror


class Verdict(Enum):
    """ADMIT it, SKIP it (it goes elsewhere or later), or STOP: nobody may go before it."""

    ADMIT = auto()
    SKIP = auto()
    STOP = auto()


class AdmissionTurn:
    """One worker's pass over the waiting sequences."""

    def __init__(
        self,
        policy: SchedulerPolicy,
        waiting: WaitingQueue,
        worker: WorkerMirror,
        workers: Collection[WorkerMirror],
        now_ns: int,
    ) -> None:
        self._policy = policy
        self._waiting = waiting
        self._worker = worker
        self._placement = PlacementTurn(policy, worker, workers, now_ns)
        self._now_ns = now_ns
        self._passed_over: list[Sequence] = []
        self._num_without_room = 0

    def judge(self, sequence: Sequence, cached: list[int]) -> Verdict:
        """The verdict on `sequence`, whose cached prefix lies in `cached`."""
        if sequence.num_tokens >= self._worker.max_len:
            return Verdict.SKIP
        if self._placement.is_left_to_another(sequence):
            return Verdict.SKIP
        may_be_bypassed = self._waiting.may_be_bypassed(sequence, self._now_ns)
        if may_be_bypassed and self._is_prefix_on_its_way(sequence, cached):
            return self._pass_over(sequence)
        if self._has_room(sequence, cached) and self._may_join(sequence):
            return Verdict.ADMIT
        self._num_without_room += 1
        is_in_window = self._num_without_room < self._policy.bypass_window
        return self._pass_over(sequence) if may_be_bypassed and is_in_window else Verdict.STOP

    def note_admission(self) -> None:
        """A later sequence has been admitted: those passed over have been bypassed."""
        for sequence in self._passed_over:
            sequence.note_bypass(self._now_ns)

    def num_new_blocks(self, sequence: Sequence, cached: list[int]) -> int:
        """Blocks for the rest of the prompt, the first token, and a lease after it."""
        num_tokens = sequence.num_tokens + 1 + self._policy.lease_steps
        max_len = sequence.num_prompt_tokens + sequence.request.queued.max_tokens
        num_tokens = min(num_tokens, max_len, self._worker.max_len)
        return self._worker.blocks.blocks_for(num_tokens) - len(cached)

    def _pass_over(self, sequence: Sequence) -> Verdict:
        self._passed_over.append(sequence)
        return Verdict.SKIP

    def _is_prefix_on_its_way(self, sequence: Sequence, cached: list[int]) -> bool:
        num_awaited = self._worker.num_awaited_tokens(sequence, len(cached))
        return num_awaited >= max(self._policy.min_awaited_prefix_tokens, 1)

    def _has_room(self, sequence: Sequence, cached: list[int]) -> bool:
        """Blocks are there, and some to spare for the rows that are growing."""
        blocks = self._worker.blocks
        num_spare = min(self._worker.num_live_rows, blocks.num_blocks // 20 + 1)
        num_available = blocks.num_available_beside(cached) - num_spare
        return self.num_new_blocks(sequence, cached) <= num_available

    def _may_join(self, sequence: Sequence) -> bool:
        """An isolated request runs with no other; its worker empties as nobody may bypass it."""
        if self._worker.is_isolated:
            return False
        return not sequence.request.is_isolated or not self._worker.num_live_rows
