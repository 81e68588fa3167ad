"""Whole stacks with the real model lose a worker or their scheduler; the streams do not notice."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from millrace.testing.stack import Stack, start_stack
from tests.e2e.client import Answer, Client
from tests.e2e.conftest import CACHE
from tests.e2e.survival import Moved, crowd, moved_streams, until_live, until_workers

NUM_STREAMS = 32
MAX_TOKENS = 32
SCHEDULER_LIMIT_S = 5.0
LEASE_STEPS = 2

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def two_workers(models: Path) -> Iterator[Stack]:
    settings = {"MILLRACE_WORKER_DTYPE": "float32", "MILLRACE_WORKER_NUM_THREADS": "1"}
    with start_stack(CACHE / "survival", models, "--workers", "2", settings=settings) as stack:
        yield stack


@pytest.fixture
async def client(two_workers: Stack) -> AsyncIterator[Client]:
    connected = Client(two_workers)
    await until_workers(connected, 2)
    yield connected
    assert await connected.num_response_cache_hits() == 0
    await connected.until_idle(timeout_s=30.0)
    await connected.close()


@pytest.fixture(scope="module")
def undisturbed(two_workers: Stack) -> list[list[int]]:
    """The tokens of the crowd where nothing goes wrong."""

    async def run() -> list[list[int]]:
        client = Client(two_workers)
        answers, tasks = crowd(client, NUM_STREAMS, MAX_TOKENS)
        await asyncio.gather(*tasks)
        await client.close()
        return [answer.tokens for answer in answers]

    return asyncio.run(run())


async def _num_sampled(client: Client) -> int:
    """Tokens that both workers have sampled since they started."""
    loads = [await client.worker_load(name) for name in ("worker-1", "worker-2")]
    return sum(load.num_sampled_tokens for load in loads)


async def _run_with_fault(
    client: Client, stack: Stack, victim: str, undisturbed: list[list[int]], num_streams: int
) -> tuple[list[Answer], Moved]:
    answers, tasks = crowd(client, num_streams, MAX_TOKENS)
    await until_live(answers)
    assert not any(task.done() for task in tasks)
    fault_unix_ns = time.time_ns()
    os.kill(stack.pid_of(victim), signal.SIGKILL)
    await asyncio.gather(*tasks)
    assert [answer.tokens for answer in answers] == undisturbed[:num_streams]
    moved = await moved_streams(stack, answers, fault_unix_ns)
    print(f"{victim} killed with {num_streams} streams live; {moved}")
    return answers, moved


async def test_f1_streams_survive_a_killed_worker(
    two_workers: Stack, client: Client, undisturbed: list[list[int]]
) -> None:
    _, moved = await _run_with_fault(client, two_workers, "worker-2", undisturbed, 8)
    assert max(moved.failover_s) <= 0.5


async def test_f8_32_streams_survive_a_killed_scheduler_that_is_started_again(
    two_workers: Stack, client: Client, undisturbed: list[list[int]]
) -> None:
    num_sampled = await _num_sampled(client)
    answers, moved = await _run_with_fault(
        client, two_workers, "scheduler", undisturbed, NUM_STREAMS
    )
    assert len(moved.answers) == NUM_STREAMS
    assert max(moved.failover_s) <= SCHEDULER_LIMIT_S
    again = await _num_sampled(client) - num_sampled - sum(len(a.tokens) for a in answers)
    print(f"sampled again: {again} tokens of {NUM_STREAMS} rows")
    assert 0 <= again <= LEASE_STEPS * NUM_STREAMS


@pytest.mark.slow
async def test_f9_32_streams_survive_a_killed_scheduler_on_a_standby(
    two_workers: Stack, client: Client, undisturbed: list[list[int]]
) -> None:
    with _standby(two_workers):
        _, moved = await _run_with_fault(client, two_workers, "scheduler", undisturbed, NUM_STREAMS)
    assert len(moved.answers) == NUM_STREAMS
    assert max(moved.failover_s) <= SCHEDULER_LIMIT_S


@contextmanager
def _standby(stack: Stack) -> Iterator[None]:
    """A second scheduler beside the stack's own; at its end it hands the model back."""
    settings = {
        "MILLRACE_HOME": str(stack.home),
        "MILLRACE_SCHEDULER_NATS_URL": f"nats://{stack.address_of('nats')}",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{stack.address_of('collector')}",
    }
    log = stack.home / "standby.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "millrace.scheduler"],
            env={**os.environ, **settings},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_for_line(log, "standby for", process)
        yield
        assert "active for" in log.read_text()
    finally:
        process.terminate()
        process.wait(20)


def _wait_for_line(log: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30.0
    while text not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
