"""What the scheduler knows of one worker: its rows, its blocks and the plans on their way.

Ownership of a row's blocks:

    admitted ── live ── leaving (ended, aborted, preempted) ── released in P ── result of P: freed
    └────────────── the row holds a reference to every block of its table ──────────────┘

Tokens are matched to rows by `row_epoch`, unique per worker, so a row number may be reused in the
very plan that releases it while older results are still on their way.
"""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush

from millrace.core.errors import InternalError
from millrace.core.step import Admission, StepPlan, StepResult

from .block_manager import BlockManager
from .canary import Canaries
from .outcome import WorkerStats
from .row import IssuedPlan, Row
from .sequence import Sequence, SequenceStatus
from .step_limits import StepLimits
from .step_time import StepTimeModel, chunk_pairs


class WorkerMirror:
    """Rows, blocks and outstanding plans of one worker; changed only by plans and their results.

    `num_issued_steps` counts the steps that the plans so far may run, leases included, and
    `num_settled_steps` those whose results are in or can come no more: the difference is the
    largest number of steps in flight.
    """

    def __init__(
        self,
        worker_id: str,
        *,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        max_model_len: int,
        prefix_seed: bytes,
        max_prefill_tokens: int,
        canary_every_s: float = 0.0,
    ) -> None:
        self.worker_id = worker_id
        self.max_len = min(max_model_len, num_blocks * block_size)
        self.max_num_seqs = max_num_seqs
        self.blocks = BlockManager(num_blocks, block_size)
        self.step_time = StepTimeModel()
        self.limits = StepLimits(max_num_seqs, max_prefill_tokens)
        self.rows: dict[int, Row] = {}
        self.decoding: dict[int, Row] = {}
        self.prefilling: dict[int, Row] = {}
        self.to_release: list[Row] = []
        self.plans: deque[IssuedPlan] = deque()
        self.num_issued_steps = 0
        self.num_settled_steps = 0
        self.num_kv_tokens = 0
        self.backlog_tokens = 0
        self.last_turn = 0
        self._prefix_seed = prefix_seed
        self._free_rows = list(range(max_num_seqs))
        heapify(self._free_rows)
        self.canaries = Canaries(canary_every_s, self.blocks, self._free_rows)
        self._next_plan_id = 1
        self._next_epoch = 1
        self._computing: dict[bytes, int] = {}
        self._num_steps = self._num_decode_steps = self._num_decode_rows = 0
        self._num_prefill_tokens = self._num_cached_tokens = self._num_admissions = 0

    # What there is room for.

    @property
    def num_live_rows(self) -> int:
        """Rows that are neither ended nor on their way out."""
        return len(self.decoding) + len(self.prefilling)

    @property
    def num_free_rows(self) -> int:
        """Rows that the next plan can admit into."""
        num_free = len(self._free_rows) + len(self.to_release)
        return min(num_free, max(0, self.limits.max_rows - self.num_live_rows))

    @property
    def num_outstanding(self) -> int:
        """Plans without a result."""
        return sum(not step.has_result for step in self.plans)

    @property
    def is_isolated(self) -> bool:
        """True while a request runs here that must run alone."""
        return any(
            row.sequence.request.is_isolated and not row.is_leaving for row in self.rows.values()
        )

    def owes_canary(self, now_ns: int) -> bool:
        """True where nothing is under way here and a canary is due."""
        return not (self.rows or self.num_outstanding) and self.canaries.is_due(now_ns)

    def num_pending_blocks(self) -> int:
        """Blocks that come back with the results of the plans that release their rows."""
        leaving = (row for row in self.rows.values() if row.is_leaving)
        return sum(self.blocks.num_sole(row.blocks) for row in leaving)

    def has_runnable_row(self) -> bool:
        """True where some row's length limit is not reached by the steps in flight."""
        return bool(self.prefilling) or any(
            row.num_tokens + self.num_sure_steps(row) < row.max_len
            for row in self.decoding.values()
        )

    def num_sure_steps(self, row: Row) -> int:
        """Steps in flight that the row takes part in whatever happens, leased ones left out."""
        num_plans = min(self.num_outstanding, self._next_plan_id - row.first_plan)
        return num_plans - row.num_held

    # What the cache saves a sequence here.

    def cached_blocks(self, sequence: Sequence) -> list[int]:
        """Blocks with the longest cached prefix that leaves at least one token to compute."""
        hashes = self._hashes(sequence)
        max_blocks = (sequence.num_tokens - 1) // self.blocks.block_size
        return self.blocks.find_prefix(hashes, max_blocks)

    def num_cached_tokens(self, sequence: Sequence) -> int:
        """Tokens that `cached_blocks` saves."""
        return len(self.cached_blocks(sequence)) * self.blocks.block_size

    def num_awaited_tokens(self, sequence: Sequence, num_cached_blocks: int) -> int:
        """Tokens after the cached prefix whose K/V some other row is about to have computed."""
        hashes = self._hashes(sequence)
        max_blocks = (sequence.num_tokens - 1) // self.blocks.block_size
        num_blocks = num_cached_blocks
        while num_blocks < max_blocks and hashes[num_blocks] in self._computing:
            num_blocks += 1
        return (num_blocks - num_cached_blocks) * self.blocks.block_size

    def _hashes(self, sequence: Sequence) -> list[bytes]:
        return sequence.hashes(self._prefix_seed, self.blocks.block_size, sequence.num_tokens - 1)

    # Making a plan.

    def open_step(self) -> IssuedPlan:
        """Begins the next plan with the release of the rows that are done."""
        step = IssuedPlan(StepPlan(self._next_plan_id), self.num_issued_steps)
        step.is_next = not self.num_outstanding
        for row in self.to_release:
            self._release(step, row)
        self.to_release.clear()
        self.canaries.release(step.plan)
        return step

    def grant(self, step: IssuedPlan, row: Row, num_blocks: int) -> None:
        """Extends a row's block table."""
        for block in self.blocks.allocate(num_blocks):
            row.blocks.append(block)
            step.plan.grants.append((row.row, block))
        row.granted_tokens = len(row.blocks) * self.blocks.block_size

    def hold(self, step: IssuedPlan, row: Row) -> None:
        """Keeps a row from decoding in this plan."""
        step.plan.hold_rows.append(row.row)
        step.held.append(row)
        step.num_decode_rows -= 1

    def preempt(self, step: IssuedPlan, row: Row) -> int:
        """Releases a row in this plan; its sequence waits again once the result is in.

        Returns the number of blocks that come back then.
        """
        row.sequence.status = SequenceStatus.PREEMPTED
        if row.epoch in self.decoding:
            step.num_decode_rows -= 1
        self._take_out(row)
        self._release(step, row)
        return self.blocks.num_sole(row.blocks)

    def admit(
        self, step: IssuedPlan, sequence: Sequence, cached: list[int], num_new_blocks: int
    ) -> Row:
        """Gives a sequence a row, its cached blocks and `num_new_blocks` more."""
        queued = sequence.request.queued
        self.blocks.share(cached)
        block_size = self.blocks.block_size
        num_cached_tokens = len(cached) * block_size
        row = Row(
            row=heappop(self._free_rows),
            epoch=self._next_epoch,
            sequence=sequence,
            blocks=cached + self.blocks.allocate(num_new_blocks),
            max_len=min(sequence.num_prompt_tokens + queued.max_tokens, self.max_len),
            num_tokens=sequence.num_tokens,
            num_admitted_tokens=sequence.num_tokens,
            num_scheduled_tokens=num_cached_tokens,
            granted_tokens=(len(cached) + num_new_blocks) * block_size,
            num_cached_blocks=len(cached),
        )
        self._next_epoch += 1
        self.rows[row.epoch] = self.prefilling[row.epoch] = row
        sequence.status = SequenceStatus.RUNNING
        sequence.num_computed_tokens = num_cached_tokens
        self.backlog_tokens += row.num_admitted_tokens - num_cached_tokens
        self._num_admissions += 1
        self._num_cached_tokens += num_cached_tokens
        for block_hash in self._hashes(sequence)[len(cached) :]:
            self._computing.setdefault(block_hash, row.epoch)
        step.plan.admissions.append(_admission(row, num_cached_tokens))
        return row

    def advance(self, step: IssuedPlan, row: Row, num_tokens: int) -> None:
        """Sends the next `num_tokens` of a row through prefill; with the last one it samples."""
        step.num_pairs += chunk_pairs(num_tokens, row.num_scheduled_tokens)
        row.num_scheduled_tokens += num_tokens
        step.plan.chunks.append((row.row, num_tokens))
        step.chunks.append((row, num_tokens))
        if not row.is_prefilling:
            del self.prefilling[row.epoch]
            self.decoding[row.epoch] = row
            self.num_kv_tokens += row.num_tokens
            row.first_step, row.first_plan = step.first_step, step.plan.plan_id

    def issue(self, step: IssuedPlan) -> StepPlan:
        """Ends the making of a plan: from here on it counts as sent."""
        num_tokens = step.num_decode_rows + sum(count for _, count in step.chunks)
        step.predicted_ms = self.step_time.predict_ms(num_tokens, step.kv_tokens, step.num_pairs)
        for row in step.held:
            row.num_held += 1
        self.plans.append(step)
        self._next_plan_id += 1
        self.num_issued_steps += 1 + step.plan.lease_steps
        return step.plan

    # Taking in a result.

    def settle(self, result: StepResult) -> IssuedPlan:
        """The plan that a result belongs to; its first result computes its chunks and frees rows.

        Raises `InternalError` where no such plan is outstanding or one before it has no result,
        and where a canary did not sing.
        """
        while (
            self.plans and self.plans[0].plan.plan_id < result.plan_id and self.plans[0].has_result
        ):
            self.plans.popleft()
        if not self.plans or self.plans[0].plan.plan_id != result.plan_id:
            raise InternalError(
                f"worker {self.worker_id} answered plan {result.plan_id}, which is not due"
            )
        step = self.plans[0]
        self.num_settled_steps = max(self.num_settled_steps, step.first_step) + 1
        if self.num_settled_steps > step.first_step + 1 + step.plan.lease_steps:
            raise InternalError(
                f"worker {self.worker_id} ran more steps of plan {result.plan_id} than its "
                f"{step.plan.lease_steps} leased ones"
            )
        if not step.has_result:
            step.has_result = True
            for row in step.held:
                row.num_held -= 1
            self._free_released(step)
            self._mark_failed(result)
            self._settle_chunks(step)
        self.canaries.settle(self.worker_id, result)
        if not step.is_canary:
            self._observe(step, result)
        return step

    def accept(self, row: Row, token_id: int) -> None:
        """Appends a sampled token; the K/V of all tokens before it is computed.

        Raises `InternalError` where the row is in prefill and cannot have sampled.
        """
        if row.epoch in self.prefilling:
            raise InternalError(f"worker {self.worker_id} sampled in the prefill of row {row.row}")
        sequence = row.sequence
        sequence.token_ids.append(token_id)
        sequence.num_computed_tokens = row.num_tokens
        if row.num_tokens % self.blocks.block_size == 0:
            self._cache_blocks(row)
        row.num_tokens += 1
        if not row.is_leaving:
            self.num_kv_tokens += 1

    def leave(self, row: Row) -> None:
        """Has a row released in the next plan, unless it is on its way out already."""
        if not row.is_leaving:
            self._take_out(row)
            self.to_release.append(row)

    def occupant(self, row_number: int) -> Row | None:
        """Who sits in a row in the step whose result is being settled, released rows left out.

        Rows are kept in the order of admission until their release is confirmed, so the first one
        with this number had not been released then.
        """
        return next((row for row in self.rows.values() if row.row == row_number), None)

    def stats(self) -> WorkerStats:
        """The counters now; a canary's block is free as far as requests go."""
        num_held = int(self.canaries.held is not None)
        return WorkerStats(
            worker_id=self.worker_id,
            num_steps=self._num_steps,
            num_decode_steps=self._num_decode_steps,
            num_decode_rows=self._num_decode_rows,
            num_prefill_tokens=self._num_prefill_tokens,
            num_cached_tokens=self._num_cached_tokens,
            num_admissions=self._num_admissions,
            num_live_rows=self.num_live_rows,
            num_used_blocks=self.blocks.num_used - num_held,
            num_free_blocks=self.blocks.num_free + num_held,
            num_blocks=self.blocks.num_blocks,
            predicted_step_ms=max((step.predicted_ms for step in self.plans), default=0.0),
        )

    def _mark_failed(self, result: StepResult) -> None:
        broken = (error.row for error in result.row_errors)
        for row_number in (*result.failed_rows, *broken):
            if (row := self.occupant(row_number)) is not None:
                row.has_failed = True

    def _settle_chunks(self, step: IssuedPlan) -> None:
        for row, num_tokens in step.chunks:
            if row.has_failed:
                continue
            row.sequence.num_computed_tokens += num_tokens
            self._num_prefill_tokens += num_tokens
            if not row.is_leaving:
                self.backlog_tokens -= num_tokens
            self._cache_blocks(row)

    def _free_released(self, step: IssuedPlan) -> None:
        for row in step.released:
            del self.rows[row.epoch]
            self.blocks.free(row.blocks)

    def _observe(self, step: IssuedPlan, result: StepResult) -> None:
        self._num_steps += 1
        self._num_decode_steps += result.num_decode_rows > 0
        self._num_decode_rows += result.num_decode_rows
        if result.num_tokens and not result.failure:
            self.limits.note_good_step()
        # The first step of a worker warms it up and says nothing about the next ones.
        if self._num_steps > 1 and result.num_tokens and result.step_ns:
            # A leased step repeats the rows of its plan, not the chunks.
            has_chunks = result.num_tokens > result.num_decode_rows
            self.step_time.observe(
                result.num_tokens,
                step.kv_tokens,
                result.step_ns / 1e6,
                num_pairs=step.num_pairs if has_chunks else 0,
            )

    def _cache_blocks(self, row: Row) -> None:
        sequence, block_size = row.sequence, self.blocks.block_size
        num_full = sequence.num_computed_tokens // block_size
        hashes = sequence.hashes(self._prefix_seed, block_size, num_full * block_size)
        for index in range(row.num_cached_blocks, num_full):
            self.blocks.cache(row.blocks[index], hashes[index])
            self._forget_computing(row, hashes[index])
        row.num_cached_blocks = max(row.num_cached_blocks, num_full)

    def _take_out(self, row: Row) -> None:
        row.is_leaving = True
        if self.decoding.pop(row.epoch, None) is not None:
            self.num_kv_tokens -= row.num_tokens
        self.prefilling.pop(row.epoch, None)
        sequence = row.sequence
        self.backlog_tokens -= max(0, row.num_admitted_tokens - sequence.num_computed_tokens)
        for block_hash in sequence.block_hashes[row.num_cached_blocks :]:
            self._forget_computing(row, block_hash)

    def _release(self, step: IssuedPlan, row: Row) -> None:
        step.plan.release_rows.append(row.row)
        step.released.append(row)
        heappush(self._free_rows, row.row)

    def _forget_computing(self, row: Row, block_hash: bytes) -> None:
        if self._computing.get(block_hash) == row.epoch:
            del self._computing[block_hash]


def _admission(row: Row, num_cached_tokens: int) -> Admission:
    sequence = row.sequence
    queued = sequence.request.queued
    return Admission(
        row=row.row,
        row_epoch=row.epoch,
        token_ids=list(sequence.token_ids),
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_cached_tokens=num_cached_tokens,
        choice=sequence.choice,
        blocks=list(row.blocks),
        sampling=queued.sampling,
        stop_token_ids=queued.stop_token_ids,
        max_len=row.max_len,
        traceparent=queued.traceparent,
    )
