"""Eight hundred requests from eight clients, and a worker that dies or freezes in the middle."""

from __future__ import annotations

import asyncio
import signal
import statistics
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from millrace.scheduler.policy import SchedulerPolicy
from millrace.testing.gaps import Gaps
from tests.faults.fault_stack import FaultStack
from tests.faults.oracle import check_tokens
from tests.faults.sample_counts import SampleCounts
from tests.integration.gateway import Answer, ScriptedGateway, queued_request

NUM_REQUESTS = 800
NUM_CLIENTS = 8
MAX_TOKENS = 10
STEP_S = 0.005
HALF_TIMEOUT_S = 60.0


@dataclass
class _Load:
    """Each client sends its next request when the last one is over."""

    stack: FaultStack
    gateway: ScriptedGateway
    answers: list[Answer] = field(default_factory=list)
    half_sent: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for client in range(NUM_CLIENTS):
                group.create_task(self._client(client))

    async def _client(self, client: int) -> None:
        for number in range(client + 1, NUM_REQUESTS + 1, NUM_CLIENTS):
            request = queued_request(number, max_tokens=MAX_TOKENS)
            answer = await self.gateway.send(self.stack.bus, request)
            self.answers.append(answer)
            if len(self.answers) == NUM_REQUESTS // 2:
                self.half_sent.set()
            await self.gateway.until(lambda answer=answer: answer.is_over)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fault", "limit_s"),
    [
        pytest.param(signal.SIGKILL, 0.5, id="killed"),
        pytest.param(signal.SIGSTOP, 3.0, id="stopped", marks=pytest.mark.slow),
    ],
)
async def test_f1_f3_800_requests_from_8_clients_survive_the_loss_of_one_of_two_workers(
    stack: FaultStack, tmp_path: Path, fault: signal.Signals, limit_s: float
) -> None:
    file, num_seeds = tmp_path / "samples", NUM_REQUESTS + 1
    sampled = SampleCounts(file, num_seeds)
    for name in ("a", "b"):
        await stack.add_process(name, step_s=STEP_S, samples_file=file, num_seeds=num_seeds)
    gateway = await stack.gateway()
    load = _Load(stack, gateway)
    running = asyncio.create_task(load.run())
    async with asyncio.timeout(HALF_TIMEOUT_S):
        await load.half_sent.wait()
    await stack.until(lambda: len(stack.members(_busier(stack))) > 1)
    victim = _busier(stack)
    # A request runs again from its prompt on: as long as one takes that is new.
    recompute_s = statistics.median(a.waits_s[0] for a in load.answers if a.token_times_s)
    moved = set(stack.members(victim))
    stack.processes[victim].signal(fault)
    await running

    assert len(load.answers) == NUM_REQUESTS
    check_tokens(load.answers)
    most_s = limit_s + recompute_s
    gaps = Gaps.of([max(answer.waits_s) for answer in load.answers])
    moved_answers = [a for a in load.answers if a.request.request_id in moved]
    moved_gaps = Gaps.of([max(answer.waits_s) for answer in moved_answers])
    print(f"{gaps}; moved ones: {moved_gaps}; limit {most_s:.3f} s")
    assert gaps.most_s <= most_s
    again = [sampled[a.request.sampling.seed] - len(a.tokens[0]) for a in load.answers]
    print(f"sampled again: {sum(again)} tokens of {sum(map(bool, again))} streams")
    assert min(again) == 0
    assert max(again) <= SchedulerPolicy().lease_steps
    assert sum(map(bool, again)) <= len(moved)


def _busier(stack: FaultStack) -> str:
    return max(("a", "b"), key=lambda worker_id: len(stack.members(worker_id)))
