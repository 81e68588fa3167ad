"""Builders, and a simulation that drives a scheduler against workers without a model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from millrace.core.request import Priority, QueuedRequest
from millrace.core.sampling import SamplingSpec
from millrace.core.step import StepPlan, StepResult
from millrace.core.tokens import FinishReason
from millrace.scheduler.grants import is_covered
from millrace.scheduler.outcome import StepOutcome
from millrace.scheduler.policy import SchedulerPolicy
from millrace.scheduler.prefix import prefix_seed
from millrace.scheduler.scheduler import Scheduler
from millrace.scheduler.worker_mirror import WorkerMirror
from millrace.testing.model_worker import ModelWorker, expected_output

SEED = prefix_seed("revision", "float32")
MS = 1_000_000


def queued_request(
    request_id: str = "a",
    prompt: Sequence[int] = (1, 2, 3),
    *,
    max_tokens: int = 4,
    num_choices: int = 1,
    priority: Priority = Priority.NORMAL,
    tenant: str = "",
    arrival: int = 0,
    deadline_unix_ms: int = 0,
    stop: tuple[int, ...] = (),
    sampling: SamplingSpec | None = None,
) -> QueuedRequest:
    return QueuedRequest(
        request_id=request_id,
        gateway_id="g",
        model="m",
        prompt_token_ids=list(prompt),
        sampling=sampling or SamplingSpec(temperature=1.0, seed=7),
        stop_token_ids=stop,
        max_tokens=max_tokens,
        num_choices=num_choices,
        priority=priority,
        deadline_unix_ms=deadline_unix_ms,
        arrival_unix_ns=arrival,
        tenant=tenant,
    )


@dataclass
class Link:
    """One worker with what is on its way to and from it."""

    worker: ModelWorker
    plans: deque[StepPlan] = field(default_factory=deque)
    results: deque[StepResult] = field(default_factory=deque)
    num_outstanding: int = 0
    sent: list[StepPlan] = field(default_factory=list)


class Simulation:
    """Every action is one message's move; after each one the books must balance."""

    def __init__(self, policy: SchedulerPolicy, workers: Mapping[str, ModelWorker]) -> None:
        self.policy = policy
        self.scheduler = Scheduler(policy)
        self.links: dict[str, Link] = {}
        self.requests: dict[str, QueuedRequest] = {}
        self.outputs: dict[tuple[str, int], list[int]] = {}
        self.finishes: dict[tuple[str, int], FinishReason] = {}
        self.finished: list[str] = []
        self.scheduled: dict[str, int] = {}
        self.failed: list[str] = []
        self.aborted: set[str] = set()
        self.now_ns = MS
        for worker_id, worker in workers.items():
            self.add_worker(worker_id, worker)

    def add_worker(self, worker_id: str, worker: ModelWorker) -> None:
        self.links[worker_id] = Link(worker)
        self.scheduler.add_worker(
            worker_id,
            num_blocks=worker.num_blocks,
            block_size=worker.block_size,
            max_num_seqs=worker.max_num_seqs,
            max_model_len=worker.info.max_model_len,
            prefix_seed=SEED,
        )

    def mirror(self, worker_id: str = "w") -> WorkerMirror:
        return self.scheduler._workers[worker_id]

    def add(
        self, request: QueuedRequest, outputs: Mapping[int, Sequence[int]] | None = None
    ) -> None:
        self.requests[request.request_id] = request
        for choice in range(request.num_choices):
            self.outputs[request.request_id, choice] = list((outputs or {}).get(choice, ()))
        self._take(self.scheduler.add_request(request, self.now_ns, outputs=outputs))

    def abort(self, request_id: str) -> None:
        if self.scheduler.abort(request_id):
            self.aborted.add(request_id)

    def remove_worker(self, worker_id: str) -> None:
        self.scheduler.remove_worker(worker_id)
        del self.links[worker_id]

    def plan(self, worker_id: str = "w") -> StepPlan | None:
        """Schedules once, within the two plans that may be outstanding."""
        link = self.links[worker_id]
        if link.num_outstanding >= 2:
            return None
        had_work = self.scheduler.has_work(worker_id)
        plan = self.scheduler.schedule(worker_id, self.now_ns)
        if plan is not None:
            assert had_work
            link.num_outstanding += 1
            link.plans.append(plan)
            link.sent.append(plan)
        self.check(worker_id, plan)
        return plan

    def execute(self, worker_id: str = "w") -> bool:
        """The worker's next step: a plan's, or a leased one where no plan is queued."""
        link = self.links[worker_id]
        if link.plans:
            result = link.worker.execute(link.plans.popleft())
        else:
            leased = link.worker.run_lease_step()
            if leased is None:
                return False
            result = leased
        assert not result.starved_rows
        link.results.append(result)
        return True

    def deliver(self, worker_id: str = "w") -> StepOutcome | None:
        link = self.links[worker_id]
        if not link.results:
            return None
        result = link.results.popleft()
        steps = self.mirror(worker_id).plans
        link.num_outstanding -= any(
            s.plan.plan_id == result.plan_id and not s.has_result for s in steps
        )
        outcome = self.scheduler.apply(worker_id, result, self.now_ns)
        self._take(outcome)
        self.check(worker_id, None)
        return outcome

    def step(self, worker_id: str = "w") -> StepOutcome | None:
        """One step with nothing in flight before or after."""
        self.now_ns += MS
        if self.plan(worker_id) is None:
            return None
        self.execute(worker_id)
        return self.deliver(worker_id)

    def run(self, max_idle_rounds: int = 300) -> None:
        """Until nothing is left to do; fails where nothing moves though something should."""
        num_idle_rounds = 0
        while num_idle_rounds < max_idle_rounds:
            num_idle_rounds += 1
            self.now_ns += MS
            has_moved = False
            for worker_id in self.links:
                has_moved |= self.plan(worker_id) is not None
                link = self.links[worker_id]
                while link.plans:
                    has_moved |= self.execute(worker_id)
                while self.deliver(worker_id) is not None:
                    has_moved = True
            num_idle_rounds *= not has_moved
            if not has_moved and not self.scheduler.stats().num_requests:
                return
        raise AssertionError(f"stuck: {self.scheduler.stats()}")

    def check(self, worker_id: str, plan: StepPlan | None) -> None:
        worker = self.mirror(worker_id)
        check_blocks(worker)
        check_counters(worker)
        if plan is None:
            return
        num_tokens = sum(count for _, count in plan.chunks)
        num_tokens += worker.plans[-1].num_decode_rows
        assert num_tokens <= self.policy.max_num_batched_tokens
        for row in worker.decoding.values():
            assert row.row in plan.hold_rows or is_covered(worker, row)

    def check_end(self) -> None:
        """All ended as they must, and every block and row is back."""
        for request_id, request in self.requests.items():
            if request_id in self.aborted or request_id in self.failed:
                continue
            assert request_id in self.finished
            for choice in range(request.num_choices):
                info = next(iter(self.links.values())).worker.info
                output, finish = expected_output(request, choice, max_model_len=info.max_model_len)
                assert self.outputs[request_id, choice] == output
                assert self.finishes[request_id, choice] == finish
        for worker_id, link in self.links.items():
            worker = self.mirror(worker_id)
            assert link.worker.num_taken_rows == 0
            assert worker.blocks.num_used == 0
            assert worker.blocks.num_available == worker.blocks.num_blocks
            assert not worker.rows and not worker.to_release and not worker._computing
            assert link.worker.most_tokens_in_a_step <= self.policy.max_num_batched_tokens
        stats = self.scheduler.stats()
        assert (stats.num_requests, stats.num_waiting, stats.num_running) == (0, 0, 0)
        assert stats.num_waiting_tokens == 0
        assert stats.num_finished == len(self.requests)

    def _take(self, outcome: StepOutcome) -> None:
        for delta in outcome.deltas:
            assert delta.request_id not in self.aborted
            output = self.outputs[delta.request_id, delta.choice]
            assert delta.start_index == len(output), "no gap and nothing twice"
            assert (delta.request_id, delta.choice) not in self.finishes
            output.extend(delta.token_ids)
            if delta.finish:
                self.finishes[delta.request_id, delta.choice] = delta.finish
        for scheduled in outcome.scheduled:
            assert scheduled.request_id not in self.scheduled
            self.scheduled[scheduled.request_id] = scheduled.num_cached_tokens
        self.finished += outcome.finished
        self.failed += [request_id for request_id, _ in outcome.failed]


def check_blocks(worker: WorkerMirror) -> None:
    """No block is lost, and none has more owners than are counted."""
    blocks = worker.blocks
    owners = [0] * blocks.num_blocks
    for row in worker.rows.values():
        assert len(set(row.blocks)) == len(row.blocks)
        assert row.granted_tokens == len(row.blocks) * blocks.block_size
        for block in row.blocks:
            owners[block] += 1
    if worker.canaries.held:
        owners[worker.canaries.held[1]] += 1
    assert owners == blocks._ref_counts
    unowned = {block for block, count in enumerate(owners) if not count}
    assert set(blocks._free) | set(blocks._evictable) == unowned
    assert len(blocks._free) + len(blocks._evictable) == len(unowned)
    assert all(block in blocks._block_to_hash for block in blocks._evictable)
    assert not any(block in blocks._block_to_hash for block in blocks._free)


def check_counters(worker: WorkerMirror) -> None:
    """What is kept up step by step equals what a count over the rows gives."""
    assert worker.num_kv_tokens == sum(row.num_tokens for row in worker.decoding.values())
    live = (*worker.decoding.values(), *worker.prefilling.values())
    assert worker.backlog_tokens == sum(
        max(0, row.num_admitted_tokens - row.sequence.num_computed_tokens) for row in live
    )
    seats = {row.row for row in live} | {row.row for row in worker.to_release}
    assert len(seats) == len(live) + len(worker.to_release)
    if worker.canaries.held and worker.canaries.held[0] not in worker._free_rows:
        # Its own still, or given to somebody by the plan that takes it from the canary.
        seats.add(worker.canaries.held[0])
    assert seats.isdisjoint(worker._free_rows)
    assert len(seats) + len(worker._free_rows) == worker.max_num_seqs


@pytest.fixture(scope="session")
def make_request() -> Callable[..., QueuedRequest]:
    return queued_request


@pytest.fixture(scope="session")
def simulation() -> type[Simulation]:
    return Simulation


@pytest.fixture(scope="session")
def simulate() -> Callable[..., Simulation]:
    """One worker named "w"; keywords of the policy and of the worker alike."""

    def build(**settings_: object) -> Simulation:
        of_policy = {k: v for k, v in settings_.items() if hasattr(SchedulerPolicy, k)}
        of_worker = {k: v for k, v in settings_.items() if k not in of_policy}
        worker = ModelWorker(**of_worker)  # type: ignore[arg-type]
        return Simulation(SchedulerPolicy(**of_policy), {"w": worker})  # type: ignore[arg-type]

    return build


@pytest.fixture(scope="session")
def checks() -> SimpleNamespace:
    return SimpleNamespace(blocks=check_blocks, counters=check_counters)
