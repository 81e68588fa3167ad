"""The step loop: receive, apply, schedule, dispatch; once per step and worker."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing

from millrace.core.errors import Conflict, MillraceError
from millrace.core.loss import Loss
from millrace.core.model import ModelInfo
from millrace.core.step import StepResult
from millrace.telemetry.metrics import SchedulerMetrics

from .dead_letters import DeadLetters
from .dispatch import WorkerLink
from .frames import FrameSender
from .ledger import Ledger
from .outcome import StepOutcome
from .prefix import prefix_seed
from .request_spans import StepSpans
from .scheduler import Scheduler

_log = logging.getLogger(__name__)

NS_PER_S = 1e9


class StepLoop:
    """Drives every claimed worker. One plan is on its way while another is executed."""

    def __init__(
        self,
        scheduler: Scheduler,
        ledger: Ledger,
        frames: FrameSender,
        step_spans: StepSpans,
        dead_letters: DeadLetters,
        metrics: SchedulerMetrics,
    ) -> None:
        self._scheduler = scheduler
        self._ledger = ledger
        self._frames = frames
        self._step_spans = step_spans
        self._dead_letters = dead_letters
        self._metrics = metrics
        self._workers: dict[str, WorkerLink] = {}
        self._num_preemptions = 0

    @property
    def models(self) -> list[ModelInfo]:
        """What each claimed worker serves."""
        return [worker.opened.model for worker in self._workers.values()]

    async def drive(self, worker: WorkerLink) -> None:
        """Until the worker's stream ends; its sequences then wait for another.

        A stream that breaks is the worker's death; one that the worker closes, or that a newer
        owner takes, is not.
        """
        self._add(worker)
        loss = Loss.WORKER_LEFT
        watch = asyncio.create_task(self._watch(worker))
        try:
            async with aclosing(worker.results()) as results:
                async for result in results:
                    outcome = self._apply(worker, result)
                    # Frames leave first: the worker has its next plan, clients wait for tokens.
                    await asyncio.sleep(0)
                    self._note(worker, result, outcome)
                    self.dispatch()
        except MillraceError as error:
            told = {"worker_id": worker.worker_id}
            _log.warning("the stream to a worker ended: %s", error, extra=told)
            if not isinstance(error, Conflict):
                loss = Loss.WORKER_FROZEN if worker.frozen_s else Loss.WORKER_LOST
        finally:
            watch.cancel()
            self._remove(worker, loss)

    def dispatch(self) -> None:
        """Sends every worker the plans it has room for."""
        for worker in self._workers.values():
            while worker.has_room:
                started_ns = time.perf_counter_ns()
                plan = self._scheduler.schedule(worker.worker_id, time.time_ns())
                if plan is None:
                    break
                worker.send(plan)
                self._metrics.schedule.observe((time.perf_counter_ns() - started_ns) / NS_PER_S)

    async def _watch(self, worker: WorkerLink) -> None:
        watchdog = worker.watchdog
        while True:
            await asyncio.sleep(watchdog.limits.check_every_s)
            complaint = watchdog.complaint(self._scheduler.predicted_step_ms(worker.worker_id))
            if complaint:
                told = {"worker_id": worker.worker_id}
                _log.warning("a worker is frozen: %s", complaint, extra=told)
                worker.frozen_s = watchdog.stalled_s
                worker.break_off()
                return

    def _add(self, worker: WorkerLink) -> None:
        opened = worker.opened
        outcome = self._scheduler.add_worker(
            worker.worker_id,
            num_blocks=opened.num_blocks,
            block_size=opened.block_size,
            max_num_seqs=opened.max_num_seqs,
            max_model_len=opened.model.max_model_len,
            prefix_seed=prefix_seed(opened.model.revision, _kv_kind(opened.model)),
        )
        self._workers[worker.worker_id] = worker
        told = {"worker_id": worker.worker_id, "kv_blocks": opened.num_blocks}
        _log.info("a worker is there", extra=told)
        self._frames.send_outcome(outcome)
        self.dispatch()

    def _remove(self, worker: WorkerLink, loss: Loss) -> None:
        del self._workers[worker.worker_id]
        outcome = self._scheduler.remove_worker(worker.worker_id, loss)
        told = {"worker_id": worker.worker_id, "reason": loss, "requeued": len(outcome.requeued)}
        _log.info("a worker is gone", extra=told)
        self._metrics.workers_lost.labels(loss).inc()
        self._metrics.rows_lost.labels(loss).inc(len(outcome.lost_rows))
        self._frames.send_outcome(outcome, worker.worker_id, worker.frozen_s)
        self._dead_letters.record(outcome.dead_letters)
        self.dispatch()

    def _apply(self, worker: WorkerLink, result: StepResult) -> StepOutcome:
        for error in result.row_errors:
            told = {"worker_id": worker.worker_id}
            _log.error("a row has ended: %s", error.reason, extra=told)
        outcome = self._scheduler.apply(worker.worker_id, result, time.time_ns())
        if not outcome.is_canary:
            self._frames.send_outcome(outcome, worker.worker_id)
            self._dead_letters.record(outcome.dead_letters)
        return outcome

    def _note(self, worker: WorkerLink, result: StepResult, outcome: StepOutcome) -> None:
        if outcome.is_canary:
            return
        # A step that only gave rows back is no batch.
        is_batch = bool(result.num_tokens or result.failure)
        if is_batch and self._step_spans.is_due(outcome):
            self._record_step(worker, result, outcome)
        self._count(outcome)
        if is_batch and worker.round_trip_ns is not None:
            self._metrics.round_trip.observe(worker.round_trip_ns / NS_PER_S)
        if is_batch:
            self._metrics.batch_size.observe(result.num_decode_rows)
            self._metrics.batch_tokens.observe(result.num_tokens)

    def _count(self, outcome: StepOutcome) -> None:
        metrics = self._metrics
        if outcome.lost_rows:
            metrics.rows_lost.labels(outcome.loss).inc(len(outcome.lost_rows))
        num_preemptions = self._scheduler.num_preemptions
        metrics.preemptions.inc(num_preemptions - self._num_preemptions)
        self._num_preemptions = num_preemptions
        for scheduled in outcome.scheduled:
            if entry := self._ledger.get(scheduled.request_id):
                entry.spans.draw_queue_wait()
                waited_ns = scheduled.scheduled_unix_ns - entry.held.published_unix_ns
                metrics.request_queue_time.observe(max(0, waited_ns) / NS_PER_S)
                metrics.prefix_cache_queries.inc(len(entry.request.prompt_token_ids))
                metrics.prefix_cache_hits.inc(scheduled.num_cached_tokens)

    def _record_step(self, worker: WorkerLink, result: StepResult, outcome: StepOutcome) -> None:
        members = {delta.request_id for delta in outcome.deltas}
        members.update(self._scheduler.members(worker.worker_id))
        entries = [entry for member in members if (entry := self._ledger.get(member))]
        self._step_spans.record(
            worker.worker_id,
            result,
            [entry.spans.process for entry in entries],
            self._scheduler.num_used_blocks(worker.worker_id),
        )


def _kv_kind(model: ModelInfo) -> str:
    """What K/V depends on besides tokens and weights: number type and quantization."""
    if model.quantization == "none":
        return model.dtype
    return f"{model.dtype}/{model.quantization}"
