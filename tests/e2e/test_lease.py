"""The real model's worker while its scheduler is stopped for less than two steps."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from millrace.telemetry.span_record import NS_PER_S, SpanRecord
from millrace.telemetry.store import TraceStore
from millrace.testing.stack import Stack, start_stack
from tests.e2e.client import Answer, Client
from tests.e2e.conftest import CACHE
from tests.e2e.survival import crowd, prefills, until_live

NUM_STREAMS = 8
MAX_TOKENS = 256
NUM_STOPS = 20
STOP_STEPS = 1.8
STEPS_BETWEEN = 8

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture(params=[2, 0], ids=["lease-2", "lease-0"])
def leased(request: pytest.FixtureRequest, models: Path) -> Iterator[tuple[Stack, int]]:
    """A span for every step, and the lease."""
    settings = {
        "MILLRACE_WORKER_DTYPE": "float32",
        "MILLRACE_WORKER_NUM_THREADS": "1",
        "MILLRACE_SCHEDULER_LEASE_STEPS": str(request.param),
        "MILLRACE_SCHEDULER_STEP_SPAN_EVERY": "1",
    }
    with start_stack(CACHE / "lease", models, settings=settings) as stack:
        yield stack, request.param


async def test_stop_of_less_than_two_steps_idles_the_worker_only_without_a_lease(
    leased: tuple[Stack, int],
) -> None:
    stack, lease_steps = leased
    client = Client(stack)
    answers, tasks = crowd(client, NUM_STREAMS, MAX_TOKENS)
    await until_live(answers)
    stops_ns, step_s = await _stop_the_scheduler(stack, answers)
    assert not any(task.done() for task in tasks)
    await asyncio.gather(*tasks)
    await client.close()
    idle_s = [_idle_s(await _steps(stack, answers[0]), stop_ns, step_s) for stop_ns in stops_ns]
    mean = statistics.fmean(idle_s) / step_s
    print(
        f"lease of {lease_steps}: step {step_s * 1e3:.1f} ms; idle per stop of {STOP_STEPS} steps: "
        f"median {statistics.median(idle_s) / step_s:.2f}, mean {mean:.2f}, "
        f"most {max(idle_s) / step_s:.2f} steps"
    )
    if lease_steps:
        assert mean <= 0.1
    else:
        # On the average half a step is left of the one that runs, and one plan waits behind it.
        assert mean >= 0.2


async def _stop_the_scheduler(stack: Stack, answers: list[Answer]) -> tuple[list[int], float]:
    """When each stop began, and how long a step is."""
    await asyncio.sleep(1.0)
    step_s = statistics.median(
        later - earlier
        for answer in answers
        for earlier, later in pairwise(answer.token_times_s[1:])
    )
    pid = stack.pid_of("scheduler")
    stops_ns: list[int] = []
    for number in range(NUM_STOPS):
        # Another part of the step each time.
        await asyncio.sleep((STEPS_BETWEEN + number / NUM_STOPS) * step_s)
        stops_ns.append(time.time_ns())
        os.kill(pid, signal.SIGSTOP)
        try:
            await asyncio.sleep(STOP_STEPS * step_s)
        finally:
            os.kill(pid, signal.SIGCONT)
    return stops_ns, step_s


async def _steps(stack: Stack, answer: Answer) -> list[SpanRecord]:
    """Every step that a stream was in, in order."""
    await prefills(stack, [answer])
    store = TraceStore(stack.home / "run" / "spans.db")
    try:
        return store.steps(store.find(answer.request_id).trace_id)
    finally:
        store.close()


def _idle_s(steps: list[SpanRecord], stop_ns: int, step_s: float) -> float:
    """For how long the worker ran no step, from the beginning of a stop to well after its end."""
    until_ns = stop_ns + round((STOP_STEPS + 2) * step_s * NS_PER_S)
    idle_ns = [
        later.start_ns - earlier.end_ns
        for earlier, later in pairwise(steps)
        if earlier.end_ns >= stop_ns and later.start_ns <= until_ns
    ]
    assert idle_ns, "no step was seen around the stop"
    return sum(max(0, ns) for ns in idle_ns) / NS_PER_S
