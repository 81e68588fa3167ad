"""A step of the real model that takes twenty seconds, with the service's own limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace.telemetry.names import ATTR_PREFILL_NUM_CHUNKS
from millrace.telemetry.span_record import SpanRecord
from millrace.testing.stack import Stack, start_stack
from tests.e2e.client import Answer, Client
from tests.e2e.conftest import CACHE
from tests.e2e.survival import prefills

# The first one that is long enough on this machine.
PROMPT_LENGTHS = (1_000, 2_000, 3_000, 4_500, 6_000, 8_000)
LEAST_STEP_S = 20.0
MAX_ASKS = 6

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture
def slow_workers(models: Path) -> Iterator[Stack]:
    """Two, so that a failover would have somewhere to go; a whole prompt is one step."""
    settings = {
        "MILLRACE_WORKER_DTYPE": "float32",
        "MILLRACE_WORKER_NUM_THREADS": "1",
        "MILLRACE_SCHEDULER_MAX_NUM_BATCHED_TOKENS": "8192",
    }
    with start_stack(CACHE / "slow-step", models, "--workers", "2", settings=settings) as stack:
        yield stack


async def test_f3_slow_but_healthy_step_of_20_s_moves_nothing(slow_workers: Stack) -> None:
    client = Client(slow_workers)
    await _warm_up(client)
    num_admissions = await _num_admissions(client)
    steps = await _steps_until_slow(client, slow_workers)
    print("; ".join(f"one step of {span.duration_s:.1f} s" for span in steps))
    assert steps[-1].duration_s >= LEAST_STEP_S
    assert all(span.attributes[ATTR_PREFILL_NUM_CHUNKS] == 1 for span in steps)
    assert await _num_admissions(client) == num_admissions + len(steps)
    assert "is frozen" not in slow_workers.log_text()
    await client.close()


async def _steps_until_slow(client: Client, stack: Stack) -> list[SpanRecord]:
    """The `prefill` of longer and longer prompts, each of them one step."""
    steps: list[SpanRecord] = []
    for num_tokens in PROMPT_LENGTHS:
        answer = await _ask(client, num_tokens)
        (of_answer,) = await prefills(stack, [answer])
        steps += of_answer
        if steps[-1].duration_s >= LEAST_STEP_S:
            break
    return steps


async def _ask(client: Client, num_tokens: int) -> Answer:
    tokens = [1_000 + (num_tokens + number) % 30_000 for number in range(num_tokens)]
    return await client.ask(token_ids=tokens, max_tokens=4, ignore_eos=True)


async def _warm_up(client: Client) -> None:
    """The watchdog of a worker is armed by its first step."""
    for number in range(MAX_ASKS):
        await _ask(client, 20 + number)
        workers = (await client.scheduler_stats()).workers
        if len(workers) == 2 and all(worker.num_steps for worker in workers):
            return
    pytest.fail(f"{MAX_ASKS} requests did not reach both workers")


async def _num_admissions(client: Client) -> int:
    return sum(worker.num_admissions for worker in (await client.scheduler_stats()).workers)
