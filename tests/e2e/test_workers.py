"""Two workers side by side."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace.testing.stack import Stack, start_stack
from tests.e2e.client import Answer, Client
from tests.e2e.conftest import CACHE

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def two_workers(models: Path) -> Iterator[Stack]:
    settings = {"MILLRACE_WORKER_DTYPE": "float32", "MILLRACE_WORKER_NUM_THREADS": "1"}
    with start_stack(CACHE / "two-workers", models, "--workers", "2", settings=settings) as stack:
        yield stack


async def test_each_of_two_workers_gets_its_share_and_the_same_seed_the_same_text(
    two_workers: Stack,
) -> None:
    client = Client(two_workers)
    alone = await client.ask(text="A poem:", max_tokens=16, temperature=1.0, seed=5)
    crowd = await asyncio.gather(
        *(
            client.ask(text="A poem:", max_tokens=16, temperature=1.0, seed=5, ignore_eos=False)
            for _ in range(24)
        )
    )
    workers = (await client.scheduler_stats()).workers
    rows = [worker.num_admissions for worker in workers]
    assert len(rows) == 2
    assert min(rows) >= 0.3 * sum(rows)
    assert all(answer.tokens == alone.tokens for answer in crowd)
    assert await client.num_response_cache_hits() == 0
    await client.close()


async def test_streams_survive_a_killed_worker_with_the_same_tokens(two_workers: Stack) -> None:
    client = Client(two_workers)
    await _assert_same_tokens_after_a_kill(client, two_workers, "worker-2")
    await client.close()


async def test_streams_survive_a_killed_scheduler_with_the_same_tokens(two_workers: Stack) -> None:
    client = Client(two_workers)
    await _assert_same_tokens_after_a_kill(client, two_workers, "scheduler")
    await client.close()


async def _assert_same_tokens_after_a_kill(client: Client, stack: Stack, victim: str) -> None:
    """Eight streams under way, one process killed, against the same eight without a fault."""

    async def stream(number: int) -> Answer:
        return await client.ask(text=f"Tale {number}:", max_tokens=48, ignore_eos=True)

    undisturbed = await asyncio.gather(*(stream(number) for number in range(8)))
    disturbed = [asyncio.create_task(stream(number)) for number in range(8)]
    # Far enough for tokens of every stream to be out, and far from the end.
    await asyncio.sleep(0.3 * (undisturbed[0].ended_s - undisturbed[0].started_s))
    assert not any(task.done() for task in disturbed)
    os.kill(stack.pid_of(victim), signal.SIGKILL)
    answers = await asyncio.gather(*disturbed)
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in undisturbed]
    await client.until_idle(timeout_s=30.0)
