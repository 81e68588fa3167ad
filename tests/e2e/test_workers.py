"""Two workers side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace.testing.stack import Stack, start_stack
from tests.e2e.client import Client
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
