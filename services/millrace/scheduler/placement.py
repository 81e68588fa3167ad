"""Which of several workers a waiting sequence goes to.

A sequence is placed when a worker asks for a plan, not before, so nothing is ever queued at the
wrong worker. The cost of a worker in milliseconds is its uncomputed prefill with the sequence's
own, plus some decode steps with the sequence's context among them. The asking worker takes a
sequence unless another one that could take it now is clearly cheaper, or as cheap with fewer
rows, or with as many and longer without an admission.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from .policy import SchedulerPolicy
from .sequence import Sequence
from .step_time import StepTimeModel
from .worker_mirror import WorkerMirror

_CLEARLY = 0.1
_NUM_STEPS_TO_KNOW = 32
# Tokens and context of a step by which workers are compared, and how much makes another kind.
_TYPICAL_STEP = (32, 8192)
_OTHER_KIND = 2.0


@dataclass(slots=True)
class _Left:
    """What a worker will find waiting for it, by the decisions of this turn."""

    num_rows: int = 0
    num_tokens: int = 0
    kv_tokens: int = 0
    num_blocks: int = 0


class PlacementTurn:
    """The decisions of one worker's turn; it remembers what it leaves to the others."""

    def __init__(
        self,
        policy: SchedulerPolicy,
        asking: WorkerMirror,
        workers: Collection[WorkerMirror],
        now_ns: int,
    ) -> None:
        self._policy = policy
        self._asking = asking
        self._now_ns = now_ns
        self._others = {w.worker_id: (w, _Left()) for w in workers if w is not asking}
        self._best_known = max((w.step_time for w in workers), key=lambda m: m.num_observations)

    def is_left_to_another(self, sequence: Sequence) -> bool:
        """True where the asking worker should not take `sequence` though it could."""
        if not self._others:
            return False
        able = [
            entry for entry in self._others.values() if self._can_take(entry[0], entry[1], sequence)
        ]
        if not able or self._is_out_of_patience(sequence):
            return False
        other, left = min(able, key=lambda entry: self._cost_ms(entry[0], entry[1], sequence))
        cost_ms = self._cost_ms(other, left, sequence)
        own_cost_ms = self._cost_ms(self._asking, _Left(), sequence)
        if not self._goes_first(other, left, cost_ms, own_cost_ms):
            return False
        self._leave(other, left, sequence)
        return True

    def _goes_first(
        self, other: WorkerMirror, left: _Left, cost_ms: float, own_cost_ms: float
    ) -> bool:
        if abs(cost_ms - own_cost_ms) > _CLEARLY * own_cost_ms:
            return cost_ms < own_cost_ms
        num_rows = other.num_live_rows + left.num_rows
        own = (self._asking.num_live_rows, self._asking.last_turn)
        return (num_rows, other.last_turn) < own

    def _leave(self, other: WorkerMirror, left: _Left, sequence: Sequence) -> None:
        sequence.left_since_ns = sequence.left_since_ns or self._now_ns
        left.num_rows += 1
        left.num_tokens += sequence.num_tokens - _reusable(other, sequence)
        left.kv_tokens += sequence.num_tokens
        left.num_blocks += other.blocks.blocks_for(sequence.num_tokens + 1)

    def _is_out_of_patience(self, sequence: Sequence) -> bool:
        if not sequence.left_since_ns:
            return False
        return (self._now_ns - sequence.left_since_ns) / 1e6 > self._policy.placement_patience_ms

    def _can_take(self, worker: WorkerMirror, left: _Left, sequence: Sequence) -> bool:
        if worker.num_free_rows <= left.num_rows or sequence.num_tokens >= worker.max_len:
            return False
        if worker.is_isolated or sequence.request.is_isolated:
            return False
        cached = worker.cached_blocks(sequence)
        num_new = worker.blocks.blocks_for(sequence.num_tokens + 1) - len(cached)
        return num_new <= worker.blocks.num_available_beside(cached) - left.num_blocks

    def _cost_ms(self, worker: WorkerMirror, left: _Left, sequence: Sequence) -> float:
        num_uncached = sequence.num_tokens - _reusable(worker, sequence)
        num_prefill = num_uncached + worker.backlog_tokens + left.num_tokens
        step_time = self._step_time(worker)
        decode_ms = step_time.predict_ms(
            worker.num_live_rows + left.num_rows + 1,
            worker.num_kv_tokens + left.kv_tokens + sequence.num_tokens,
        )
        prefill_ms = num_prefill * step_time.ms_per_token
        return prefill_ms + self._policy.placement_decode_steps * decode_ms

    def _step_time(self, worker: WorkerMirror) -> StepTimeModel:
        """What is known of the busiest worker, unless this one is known to be of another kind.

        Fits of equal workers differ by noise; by its own fit, one that was slowed for a moment
        would get nothing more to do, and so nothing to correct the fit with.
        """
        own = worker.step_time
        if own.num_observations < _NUM_STEPS_TO_KNOW:
            return self._best_known
        ratio = own.predict_ms(*_TYPICAL_STEP) / self._best_known.predict_ms(*_TYPICAL_STEP)
        is_other_kind = not 1 / _OTHER_KIND <= ratio <= _OTHER_KIND
        return own if is_other_kind else self._best_known


def _reusable(worker: WorkerMirror, sequence: Sequence) -> int:
    cached = worker.cached_blocks(sequence)
    awaited = worker.num_awaited_tokens(sequence, len(cached))
    return len(cached) * worker.blocks.block_size + awaited
