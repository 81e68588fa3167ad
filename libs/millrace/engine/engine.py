"""The engine: applies step plans to rows and runs their steps. Synchronous, one thread."""

from __future__ import annotations

import time
from collections.abc import Sequence

from millrace.core.model import ModelInfo
from millrace.core.step import Fork, PlanRefused, RowError, RowToken, StepPlan, StepResult

from .attention.base import Progress
from .batch import Batch, Work, build_batch
from .config import EngineConfig
from .model_runner import ModelRunner, Report
from .models.base import Logits
from .plan_check import check_plan, foreign_tokens
from .row import Row, RowTable
from .sampler import NO_TOKEN, Sampled, Sampler

NOT_FINITE = "the model's output is not finite"


def create_engine(config: EngineConfig, report: Report = lambda text: None) -> Engine:
    """Loads the model and sizes the KV cache; `report` hears of what takes long.

    Raises `UnsupportedModel` with the reason, or `ConfigError` for a setting that cannot be met.
    """
    runner = ModelRunner.load(config, report)
    return Engine(runner, config.max_num_seqs)


class Engine:
    """Rows over a model.

    A step that raises leaves every row as the plan's changes left it before the step: nothing is
    computed or sampled by halves, and the next call works.
    """

    def __init__(self, runner: ModelRunner, max_num_seqs: int) -> None:
        self.info: ModelInfo = runner.info
        self.num_blocks = runner.cache.num_blocks
        self.block_size = runner.cache.block_size
        self.max_num_seqs = max_num_seqs
        self._runner = runner
        self._sampler = Sampler(runner.info.vocab_size, runner.drawer)
        self._rows = RowTable(max_num_seqs)
        self._held: frozenset[int] = frozenset()
        self._plan_id = 0
        self._step_id = 0

    @property
    def num_live_rows(self) -> int:
        """Rows that are neither free nor finished."""
        return len(self.live_rows)

    @property
    def live_rows(self) -> list[int]:
        """The numbers of those rows."""
        return [row.index for row in self._rows if row.is_live]

    @property
    def progress(self) -> int:
        """Rises with every layer computed; may be read from any thread."""
        return self._progress.count

    def execute(self, plan: StepPlan) -> StepResult:
        """Applies the plan and runs its step.

        Raises `PlanRefused` for a plan that cannot be, or that could be applied by half only: from
        then on nobody knows which rows there are, and only `reset` helps.
        """
        check_plan(plan, self._rows, self.num_blocks, self.block_size)
        foreign = foreign_tokens(plan, self.info.vocab_size)
        try:
            self._apply(plan)
        except Exception as exc:
            raise PlanRefused(f"plan {plan.plan_id} was applied by half: {exc!r}") from exc
        for error in foreign:
            self._rows.end(error.row)
        chunks = dict(plan.chunks)
        work = []
        for row in self._rows:
            if not row.is_live:
                continue
            if row.index in chunks:
                work.append(Work(row, chunks[row.index]))
            elif row.is_decoding and row.index not in self._held:
                work.append(Work(row, 1))
        result = self._step(work)
        result.row_errors += foreign
        return result

    def run_lease_step(self) -> StepResult | None:
        """One more decode step of the unheld, unsynchronised rows; None where no row can run."""
        rows = (row for row in self._rows if row.is_decoding and not row.sync)
        work = [Work(row, 1) for row in rows if row.index not in self._held]
        if not any(self._has_blocks(item) for item in work):
            return None
        return self._step(work)

    def reset(self) -> None:
        """Drops all rows, for a new owner; what the KV cache holds is garbage from here on."""
        self._rows.clear()
        self._held = frozenset()

    @property
    def _progress(self) -> Progress:
        return self._runner.progress

    def _apply(self, plan: StepPlan) -> None:
        for index in plan.release_rows:
            self._rows.release(index)
        cache = self._runner.cache
        copied = {target for _, target in plan.copy_blocks}
        if plan.copy_blocks:
            cache.copy_blocks(plan.copy_blocks)
        fresh = [block for _, block in plan.grants]
        for fork in plan.forks:
            fresh += self._fork(fork)
        for admission in plan.admissions:
            self._rows.admit(admission)
            fresh += admission.blocks[admission.num_cached_tokens // self.block_size :]
        for index, block in plan.grants:
            self._rows.grant(index, block)
        fresh = [block for block in fresh if block not in copied]
        if fresh:
            cache.clear_blocks(fresh)
        self._held = frozenset(plan.hold_rows)
        self._plan_id = plan.plan_id

    def _fork(self, fork: Fork) -> list[int]:
        """Seats the fork; returns its blocks that the parent does not have."""
        parent = self._rows.get(fork.from_row)
        if parent is None:
            return []
        row = self._rows.fork(fork, parent)
        shared = set(self._rows.block_tables[parent.index, : parent.num_blocks].tolist())
        return [block for block in fork.blocks if block not in shared and row.is_live]

    def _has_blocks(self, item: Work) -> bool:
        return item.row.has_blocks_for(item.num_tokens, self.block_size)

    def _step(self, work: Sequence[Work]) -> StepResult:
        result = StepResult(
            step_id=self._step_id + 1, plan_id=self._plan_id, started_unix_ns=time.time_ns()
        )
        start_ns = time.perf_counter_ns()
        runnable = [item for item in work if self._has_blocks(item)]
        result.starved_rows = [item.row.index for item in work if not self._has_blocks(item)]
        if runnable:
            self._run(runnable, result)
        self._step_id += 1
        result.step_ns = time.perf_counter_ns() - start_ns
        return result

    def _run(self, work: Sequence[Work], result: StepResult) -> None:
        start_ns = time.perf_counter_ns()
        result.num_tokens = sum(item.num_tokens for item in work)
        result.num_decode_rows = sum(item.row.is_decoding for item in work)
        batch = build_batch(work, self._rows, self.block_size)
        logits = self._runner.forward(batch)
        forward_end_ns = time.perf_counter_ns()
        drawing = [item.row for item in batch.sampling_work]
        sampled = self._sample(logits, drawing)
        # Everything that can fail is behind us: only now do rows move on.
        for item in work:
            item.row.num_computed_tokens += item.num_tokens
        unsound = _unsound(batch, logits, drawing, sampled)
        tokens = [
            _take(row, drawn)
            for row, drawn in zip(drawing, sampled, strict=True)
            if row.index not in unsound
        ]
        for index in unsound:
            self._rows.end(index)
        result.row_errors = [RowError(index, NOT_FINITE) for index in sorted(unsound)]
        result.tokens = sorted(tokens, key=lambda token: token.row)
        result.forward_ns = forward_end_ns - start_ns
        result.sample_ns = time.perf_counter_ns() - forward_end_ns

    def _sample(self, logits: Logits, rows: Sequence[Row]) -> list[Sampled]:
        if not rows:
            return []
        likeliest = None if logits.likeliest is None else logits.likeliest.tolist()
        return self._sampler.sample(logits.values, [row.sample for row in rows], likeliest)


def _unsound(
    batch: Batch, logits: Logits, drawing: Sequence[Row], sampled: Sequence[Sampled]
) -> set[int]:
    """The numbers of rows whose results are not finite."""
    drawn = zip(drawing, sampled, strict=True)
    unsound = {row.index for row, sample in drawn if sample.token_id == NO_TOKEN}
    if logits.is_sound is not None and not logits.is_sound.all():
        rows = zip(batch.work, logits.is_sound.tolist(), strict=True)
        unsound.update(item.row.index for item, is_sound in rows if not is_sound)
    return unsound


def _take(row: Row, drawn: Sampled) -> RowToken:
    finish = row.append(drawn.token_id)
    return RowToken(
        row=row.index,
        row_epoch=row.epoch,
        token_id=drawn.token_id,
        finish=finish,
        logprobs=drawn.logprobs,
    )
