"""The scheduler: all sequences of one model, and the next plan of each of its workers.

Pure decisions over integers. Per worker the service around it repeats
    plan = schedule(worker_id, now)  →  send  →  result  →  apply(worker_id, result, now),
one plan ahead: schedule may be called again before the last plan's result is in. Times are Unix
time, so that they compare with arrivals and deadlines.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from itertools import islice

from millrace.core.dead_letter import DeadLetter
from millrace.core.errors import Conflict, ContextLengthExceeded, InternalError
from millrace.core.loss import Loss
from millrace.core.request import QueuedRequest
from millrace.core.step import RowError, RowToken, StepPlan, StepResult
from millrace.core.tokens import FinishReason, Scheduled, TokenDelta

from .admission import AdmissionTurn, Verdict
from .budget import TokenBudget
from .deadlines import DeadlineQueue
from .fairness import TenantLedger
from .grants import grant_blocks, is_covered
from .limits import check_length, check_queue
from .outcome import SchedulerStats, StepOutcome
from .policy import SchedulerPolicy
from .row import IssuedPlan, Row
from .sequence import LiveRequest, Sequence, SequenceStatus
from .step_limits import is_out_of_memory
from .suspicion import Fault
from .waiting import WaitingQueue
from .worker_mirror import WorkerMirror


class Scheduler:
    """Every request, sequence, row and block table of one model. Not thread-safe."""

    def __init__(self, policy: SchedulerPolicy) -> None:
        self._policy = policy
        self._requests: dict[str, LiveRequest] = {}
        self._workers: dict[str, WorkerMirror] = {}
        self._waiting = WaitingQueue(policy)
        self._ledger = TenantLedger(policy.tenant_weights)
        self._deadlines = DeadlineQueue(self._requests)
        self._newly_scheduled: list[Scheduled] = []
        self._num_accepted = 0
        self._num_turns = 0
        self._num_preemptions = 0
        self._num_finished = 0

    # Workers.

    def add_worker(
        self,
        worker_id: str,
        *,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        max_model_len: int,
        prefix_seed: bytes,
    ) -> StepOutcome:
        """Takes in an empty worker. Raises `Conflict` where the id is in use.

        The outcome names requests that came while there was no worker and that none can hold.
        """
        if worker_id in self._workers:
            raise Conflict(f"worker {worker_id} is there already")
        # A step must have room for one token of every row and one chunk besides.
        max_rows = self._policy.max_num_batched_tokens - 32
        self._workers[worker_id] = WorkerMirror(
            worker_id,
            num_blocks=num_blocks,
            block_size=block_size,
            max_num_seqs=min(max_num_seqs, max_rows),
            max_model_len=max_model_len,
            prefix_seed=prefix_seed,
            max_prefill_tokens=self._policy.max_num_batched_tokens,
            canary_every_s=self._policy.canary_every_s,
        )
        outcome = StepOutcome()
        for request in [r for r in self._requests.values() if not r.is_checked]:
            try:
                check_length(request.queued, self._workers.values())
                request.is_checked = True
            except ContextLengthExceeded as error:
                outcome.failed.append((request.request_id, error))
                self._end(request)
        return outcome

    def remove_worker(self, worker_id: str, loss: Loss = Loss.WORKER_LEFT) -> StepOutcome:
        """Forgets a worker; its sequences wait again at their old place, with all tokens so far.

        A death, unlike an orderly end, counts against the requests that were in its rows.
        """
        worker = self._workers.pop(worker_id)
        held = [
            row.sequence
            for row in worker.rows.values()
            if row.sequence.status in (SequenceStatus.RUNNING, SequenceStatus.PREEMPTED)
        ]
        for sequence in held:
            self._queue_again(sequence)
        outcome = StepOutcome(loss=loss)
        outcome.lost_rows = [(sequence.request_id, sequence.choice) for sequence in held]
        requests = {sequence.request.order: sequence.request for sequence in held}
        in_order = [requests[order] for order in sorted(requests)]
        if loss.is_death:
            self._blame(in_order, Fault.WORKER_DEATH, "", outcome)
        outcome.requeued = [r.request_id for r in in_order if r.request_id in self._requests]
        return outcome

    # Requests.

    def add_request(
        self,
        request: QueuedRequest,
        now_ns: int,
        *,
        outputs: Mapping[int, SequenceOf[int]] | None = None,
    ) -> StepOutcome:
        """Puts a request in line; `outputs` are the tokens that its client has, per choice.

        The outcome is empty but for choices of a resumed request that had ended already. Raises
        `Conflict` where the id is in use, `ContextLengthExceeded` where no worker can hold it,
        `InvalidRequest` where there is no prompt, and `Overloaded` where the queue is full.
        """
        if request.request_id in self._requests:
            raise Conflict(f"request {request.request_id} is running already", field="request_id")
        check_length(request, self._workers.values())
        check_queue(request, self._waiting, self._policy, self.predicted_wait_s())
        self._num_accepted += 1
        live = LiveRequest(
            request,
            order=(request.arrival_unix_ns, self._num_accepted),
            account=self._ledger.open(request.tenant),
            is_checked=bool(self._workers),
        )
        self._requests[request.request_id] = live
        self._deadlines.add(live)
        for choice in range(request.num_choices):
            live.sequences.append(_new_sequence(live, choice, (outputs or {}).get(choice, ())))
        live.num_unfinished = len(live.sequences)
        outcome = StepOutcome()
        for sequence in live.sequences:
            self._start(sequence, outcome)
        return outcome

    def abort(self, request_id: str) -> bool:
        """Ends a request without a word and frees all it holds; False where it is not known."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        self._end(request)
        return True

    def isolate(self, request_id: str) -> bool:
        """Has a request run with no other beside it from now on; False where it is not known.

        For one that is suspected of taking workers down.
        """
        request = self._requests.get(request_id)
        if request is None:
            return False
        request.is_isolated = True
        return True

    def expire(self, now_unix_ms: int) -> list[str]:
        """Ends the requests whose deadline has passed, waiting or running; returns their ids."""
        ended: list[str] = []
        for request in self._deadlines.expired(now_unix_ms):
            self._end(request)
            ended.append(request.request_id)
        return ended

    # Steps.

    def has_work(self, worker_id: str) -> bool:
        """False where `schedule` has nothing to do; True where it is worth asking.

        After True, schedule may still return None: then the next event of any kind decides.
        """
        worker = self._workers[worker_id]
        can_admit = bool(self._waiting) and worker.num_free_rows > 0
        has_work = bool(worker.to_release) or can_admit or worker.has_runnable_row()
        return has_work or worker.canaries.is_used

    def schedule(self, worker_id: str, now_ns: int) -> StepPlan | None:
        """The worker's next plan, or None where there is nothing to do.

        Rows that decode come first, then the prompts under way, then new ones.
        """
        worker = self._workers[worker_id]
        step = worker.open_step()
        if worker.owes_canary(now_ns):
            worker.canaries.admit(step)
            return worker.issue(step)
        self._num_preemptions += grant_blocks(worker, step, self._policy.lease_steps)
        budget = TokenBudget.for_step(
            self._policy,
            worker.step_time,
            step.num_decode_rows,
            step.kv_tokens,
            len(self._waiting) + len(worker.prefilling),
        )
        budget.num_left = min(budget.num_left, worker.limits.max_prefill_tokens)
        self._advance_prompts(worker, step, budget)
        self._admit_waiting(worker, step, budget, now_ns)
        if not step.does_something:
            return None
        plan = worker.issue(step)
        assert _is_covered(worker, plan)
        return plan

    def apply(self, worker_id: str, result: StepResult, now_ns: int) -> StepOutcome:
        """Takes in the result of a step: tokens, ends, blocks that have come back.

        Tokens of rows that have been released for good are dropped. Raises `InternalError` where
        the worker breaks the protocol or cannot generate; it is of no further use then.
        """
        worker = self._workers[worker_id]
        worker.canaries.heard(now_ns)
        step = worker.settle(result)
        if step.is_canary:
            return StepOutcome(is_canary=True)
        outcome = StepOutcome()
        outcome.scheduled, self._newly_scheduled = self._newly_scheduled, outcome.scheduled
        for token in result.tokens:
            row = worker.rows.get(token.row_epoch)
            if row is not None and row.sequence.status is not SequenceStatus.FINISHED:
                self._accept(worker, row, token, outcome)
        if result.failed_rows:
            self._fail_rows(worker, step, result, outcome)
        for error in result.row_errors:
            self._break_row(worker, error, outcome)
        for row in step.released:
            if row.sequence.status is SequenceStatus.PREEMPTED:
                self._queue_again(row.sequence)
                outcome.preempted.append((row.sequence.request_id, row.sequence.choice))
        step.released = []
        return outcome

    # Numbers.

    @property
    def num_preemptions(self) -> int:
        """Rows taken back for want of blocks, since the start."""
        return self._num_preemptions

    def members(self, worker_id: str) -> list[str]:
        """Request ids of the worker's live rows, one per row."""
        worker = self._workers[worker_id]
        rows = (*worker.decoding.values(), *worker.prefilling.values())
        return [row.sequence.request_id for row in rows]

    def num_used_blocks(self, worker_id: str) -> int:
        """Blocks that the worker's rows own."""
        return self._workers[worker_id].blocks.num_used

    def predicted_step_ms(self, worker_id: str) -> float:
        """How long the slowest of the worker's outstanding steps should take."""
        return max((step.predicted_ms for step in self._workers[worker_id].plans), default=0.0)

    def predicted_wait_s(self) -> float:
        """How long the waiting tokens will take to prefill, over all workers."""
        rate = sum(1 / worker.step_time.ms_per_token for worker in self._workers.values())
        return self._waiting.num_tokens / rate / 1e3 if rate else 0.0

    def stats(self) -> SchedulerStats:
        """Counters and queue lengths now."""
        workers = tuple(worker.stats() for worker in self._workers.values())
        return SchedulerStats(
            num_workers=sum(worker.canaries.is_proven for worker in self._workers.values()),
            num_requests=len(self._requests),
            num_waiting=len(self._waiting),
            num_waiting_tokens=self._waiting.num_tokens,
            num_running=sum(worker.num_live_rows for worker in workers),
            num_blocks=sum(worker.num_blocks for worker in workers),
            num_free_blocks=sum(worker.num_free_blocks for worker in workers),
            num_preemptions=self._num_preemptions,
            num_finished=self._num_finished,
            workers=workers,
        )

    # Making a plan.

    def _advance_prompts(self, worker: WorkerMirror, step: IssuedPlan, budget: TokenBudget) -> None:
        for row in list(worker.prefilling.values()):
            num_tokens = budget.take(
                row.num_admitted_tokens - row.num_scheduled_tokens, row.num_scheduled_tokens
            )
            if not num_tokens:
                break
            worker.advance(step, row, num_tokens)

    def _admit_waiting(
        self, worker: WorkerMirror, step: IssuedPlan, budget: TokenBudget, now_ns: int
    ) -> None:
        if not (self._waiting and worker.num_free_rows and worker.canaries.is_proven):
            return
        proven = [other for other in self._workers.values() if other.canaries.is_proven]
        turn = AdmissionTurn(self._policy, self._waiting, worker, proven, now_ns)
        candidates = self._waiting.in_order(now_ns, worker.num_cached_tokens)
        for sequence in islice(candidates, self._policy.max_candidates):
            cached = worker.cached_blocks(sequence)
            verdict = turn.judge(sequence, cached)
            if verdict is Verdict.SKIP:
                continue
            num_cached_tokens = len(cached) * worker.blocks.block_size
            num_tokens = budget.take(sequence.num_tokens - num_cached_tokens, num_cached_tokens)
            if verdict is Verdict.STOP or not num_tokens:
                break
            turn.note_admission()
            self._waiting.take(sequence, now_ns)
            row = worker.admit(step, sequence, cached, turn.num_new_blocks(sequence, cached))
            worker.advance(step, row, num_tokens)
            self._note_admission(worker, sequence, num_cached_tokens, now_ns)
            if not worker.num_free_rows:
                break

    def _note_admission(
        self, worker: WorkerMirror, sequence: Sequence, num_cached_tokens: int, now_ns: int
    ) -> None:
        self._num_turns += 1
        worker.last_turn = self._num_turns
        request = sequence.request
        request.account.charge_input(sequence.num_tokens - num_cached_tokens)
        if not request.is_scheduled:
            request.is_scheduled = True
            self._newly_scheduled.append(Scheduled(request.request_id, now_ns, num_cached_tokens))

    # Taking in a result.

    def _accept(
        self, worker: WorkerMirror, row: Row, token: RowToken, outcome: StepOutcome
    ) -> None:
        sequence = row.sequence
        request = sequence.request
        start_index = sequence.num_output_tokens
        worker.accept(row, token.token_id)
        request.account.charge_output()
        outcome.deltas.append(
            TokenDelta(
                request.queued.request_id,
                sequence.choice,
                start_index,
                [token.token_id],
                token.finish,
                [] if token.logprobs is None else [token.logprobs],
            )
        )
        if token.finish is not FinishReason.NONE:
            worker.leave(row)
            self._finish(sequence, outcome)
        if start_index == 0 and sequence.choice == 0:
            self._unpark(request)

    def _finish(self, sequence: Sequence, outcome: StepOutcome) -> None:
        sequence.status = SequenceStatus.FINISHED
        request = sequence.request
        request.num_unfinished -= 1
        if not request.num_unfinished:
            outcome.finished.append(request.request_id)
            self._forget(request)

    def _fail_rows(
        self, worker: WorkerMirror, step: IssuedPlan, result: StepResult, outcome: StepOutcome
    ) -> None:
        """Takes the rows of a failed step back; their sequences wait again, with all tokens."""
        occupants = [worker.occupant(row_number) for row_number in result.failed_rows]
        # The plan behind a failed one meets rows that are on their way out: they count once.
        rows = [row for row in occupants if row is not None and not row.is_leaving]
        for row in rows:
            row.sequence.status = SequenceStatus.PREEMPTED
            worker.leave(row)
        is_too_large = is_out_of_memory(result.failure)
        outcome.loss = Loss.OUT_OF_MEMORY if is_too_large else Loss.STEP_FAILED
        outcome.lost_rows = [(row.sequence.request_id, row.sequence.choice) for row in rows]
        if is_too_large and worker.limits.shrink(len(result.failed_rows), step.num_prefill_tokens):
            return
        requests = {id(row.sequence.request): row.sequence.request for row in rows}
        self._blame(list(requests.values()), Fault.FAILED_STEP, result.failure, outcome)

    def _break_row(self, worker: WorkerMirror, error: RowError, outcome: StepOutcome) -> None:
        """Ends the request of a row that no worker can compute."""
        row = worker.occupant(error.row)
        if row is not None and row.sequence.status is not SequenceStatus.FINISHED:
            request = row.sequence.request
            outcome.failed.append((request.request_id, InternalError(error.reason)))
            self._end(request)

    def _blame(
        self, requests: list[LiveRequest], fault: Fault, detail: str, outcome: StepOutcome
    ) -> None:
        """Counts a fault against all who were there; ends the one that had its turn alone."""
        for request in requests:
            suspicion = request.suspicion
            suspicion.note(fault)
            if request.is_isolated and len(requests) == 1:
                error = InternalError(suspicion.verdict(fault, detail))
                outcome.failed.append((request.request_id, error))
                outcome.dead_letters.append(
                    DeadLetter.of(
                        request.queued,
                        reason=error.reason,
                        cause=fault.value,
                        num_attempts=suspicion.num_faults,
                    )
                )
                self._end(request)
            request.is_isolated |= suspicion.must_run_alone

    # Requests, from accepted to over.

    def _start(self, sequence: Sequence, outcome: StepOutcome) -> None:
        """Has a new sequence wait, or end at once where its client had all of it."""
        request = sequence.request
        finish = sequence.ended_already()
        if finish is not FinishReason.NONE:
            outcome.deltas.append(
                TokenDelta(
                    request.request_id, sequence.choice, sequence.num_output_tokens, [], finish
                )
            )
            self._finish(sequence, outcome)
            return
        first = request.sequences[0]
        sequence.is_parked = sequence is not first and not first.num_output_tokens
        if not sequence.is_parked:
            self._waiting.push(sequence)

    def _unpark(self, request: LiveRequest) -> None:
        for sequence in request.sequences[1:]:
            if sequence.is_parked and sequence.status is SequenceStatus.WAITING:
                sequence.is_parked = False
                self._waiting.push(sequence)

    def _queue_again(self, sequence: Sequence) -> None:
        sequence.wait_again()
        self._waiting.push(sequence)

    def _end(self, request: LiveRequest) -> None:
        """Takes a request out wherever its sequences are."""
        ended = {id(sequence) for sequence in request.sequences}
        for sequence in request.sequences:
            if sequence.status is SequenceStatus.WAITING and not sequence.is_parked:
                self._waiting.discard(sequence)
            sequence.status = SequenceStatus.FINISHED
        for worker in self._workers.values():
            for row in [row for row in worker.rows.values() if id(row.sequence) in ended]:
                worker.leave(row)
        self._forget(request)

    def _forget(self, request: LiveRequest) -> None:
        del self._requests[request.request_id]
        self._ledger.close(request.account)
        self._num_finished += 1


def _new_sequence(request: LiveRequest, choice: int, output: SequenceOf[int]) -> Sequence:
    queued = request.queued
    return Sequence(
        request,
        choice,
        token_ids=[*queued.prompt_token_ids, *output],
        num_prompt_tokens=len(queued.prompt_token_ids),
        rank=(queued.priority, *request.order, choice),
    )


def _is_covered(worker: WorkerMirror, plan: StepPlan) -> bool:
    held = set(plan.hold_rows)
    return all(is_covered(worker, row) for row in worker.decoding.values() if row.row not in held)
