"""What batching is for: thirty-two streams against one-at-a-time `generate` of transformers."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest
from scripts.baseline_process import start_baseline

from millrace.engine.machine import usable_cpus
from millrace.testing.stack import Stack
from tests.e2e.client import Client
from tests.e2e.conftest import DEFAULT_MODEL
from tests.e2e.prompts import load_references

NUM_STREAMS = 32
NUM_TOKENS = 96
STAGGER_S = 0.02
NUM_PAIRS = 3
# Of one-at-a-time `generate` a part of the same prompts is enough for a rate.
NUM_BASELINE_PROMPTS = 3
FIRST_ID = 1000
MIN_SPEED_UP = 5.0
MIN_MEAN_BATCH = 24.0

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@dataclass(frozen=True)
class Run:
    """One run of all streams."""

    tokens_per_s: float
    mean_batch: float


async def test_thirty_two_streams_are_five_times_as_fast_as_one_at_a_time_generate(
    stack: Stack, models: Path
) -> None:
    client = Client(stack)
    prompts = _prompts()
    await _run_streams(client, prompts)
    ratios, batches = [], []
    with start_baseline(models / DEFAULT_MODEL, "float32", usable_cpus()) as baseline:
        for _ in range(NUM_PAIRS):
            alone = await asyncio.to_thread(
                baseline.tokens_per_s, prompts[:NUM_BASELINE_PROMPTS], NUM_TOKENS
            )
            run = await _run_streams(client, prompts)
            ratios.append(run.tokens_per_s / alone)
            batches.append(run.mean_batch)
            print(
                f"\n{run.tokens_per_s:.1f} tokens/s in batches of {run.mean_batch:.1f}, "
                f"generate {alone:.1f} tokens/s: {ratios[-1]:.2f} times"
            )
    assert await client.num_response_cache_hits() == 0
    await client.close()
    assert min(batches) > MIN_MEAN_BATCH, batches
    assert median(ratios) >= MIN_SPEED_UP, ratios


def _prompts() -> list[list[int]]:
    """Short prompts as token ids, so that both sides run the same; no two begin alike."""
    story = load_references()["story"].prompt_token_ids
    return [[FIRST_ID + number, *story] for number in range(NUM_STREAMS)]


async def _run_streams(client: Client, prompts: list[list[int]]) -> Run:
    before = (await client.scheduler_stats()).workers[0]
    started_s = time.monotonic()

    async def stream(number: int) -> int:
        await asyncio.sleep(number * STAGGER_S)
        answer = await client.ask(token_ids=prompts[number], max_tokens=NUM_TOKENS, ignore_eos=True)
        return len(answer.tokens)

    counts = await asyncio.gather(*(stream(number) for number in range(NUM_STREAMS)))
    elapsed_s = time.monotonic() - started_s
    after = (await client.scheduler_stats()).workers[0]
    assert counts == [NUM_TOKENS] * NUM_STREAMS
    num_rows = after.num_decode_rows - before.num_decode_rows
    num_steps = after.num_decode_steps - before.num_decode_steps
    return Run(sum(counts) / elapsed_s, num_rows / num_steps)
