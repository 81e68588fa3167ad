"""Greedy text in 16 and 8 bits does not depend on what else is in the batch.

The CPU kernels compute every row alike, whatever stands beside it: so an answer is the same, token
for token, alone, in a crowd, after a prefix hit, in chunks and after a preemption.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace.testing.stack import Stack, start_stack
from tests.e2e.ask_prompts import ask_crowd, ask_prompt, ask_staggered
from tests.e2e.client import Client
from tests.e2e.conftest import CACHE
from tests.e2e.prompts import Prompt, load_prompts

PROMPTS = load_prompts()
# Every fourth prompt, of every length.
SAMPLE = PROMPTS[::4]
CRAMPED = {
    "MILLRACE_WORKER_NUM_BLOCKS": "64",
    "MILLRACE_SCHEDULER_MAX_NUM_BATCHED_TOKENS": "96",
}

pytestmark = pytest.mark.e2e


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("none", id="bfloat16"),
        pytest.param("int8", id="int8", marks=pytest.mark.slow),
        pytest.param("int4", id="int4", marks=pytest.mark.slow),
    ],
)
def settings(request: pytest.FixtureRequest) -> dict[str, str]:
    return {
        "MILLRACE_WORKER_BACKEND": "cpu",
        "MILLRACE_WORKER_DTYPE": "bfloat16",
        "MILLRACE_WORKER_QUANTIZATION": str(request.param),
    }


@pytest.fixture(scope="module")
def roomy(models: Path, settings: dict[str, str]) -> Iterator[Stack]:
    home = CACHE / f"roomy-{settings['MILLRACE_WORKER_QUANTIZATION']}"
    with start_stack(home, models, settings=settings) as started:
        yield started


@pytest.fixture(scope="module")
def cramped(models: Path, settings: dict[str, str]) -> Iterator[Stack]:
    """Room for 2,048 tokens in all, and chunks of at most 96."""
    home = CACHE / f"cramped-{settings['MILLRACE_WORKER_QUANTIZATION']}"
    with start_stack(home, models, settings={**settings, **CRAMPED}) as started:
        yield started


@pytest.mark.parametrize(
    "prompts", [SAMPLE, pytest.param(PROMPTS, marks=pytest.mark.slow)], ids=["sample", "all"]
)
async def test_answers_are_the_same_alone_in_a_crowd_in_chunks_and_after_preemption(
    roomy: Stack, cramped: Stack, prompts: list[Prompt]
) -> None:
    client = Client(roomy)
    alone = {prompt.name: (await ask_prompt(client, prompt)).tokens for prompt in prompts}
    # All of these find the prefixes of the ones before in the cache.
    in_a_crowd = await ask_staggered(client, prompts)
    assert await client.num_response_cache_hits() == 0
    await client.close()
    client = Client(cramped)
    crowd = asyncio.create_task(ask_crowd(client))
    in_chunks = await ask_staggered(client, prompts)
    await crowd
    assert (await client.scheduler_stats()).num_preemptions > 0
    assert await client.num_response_cache_hits() == 0
    await client.until_idle()
    await client.close()

    for prompt, answer in zip([*prompts] * 2, [*in_a_crowd, *in_chunks], strict=True):
        assert answer.tokens == alone[prompt.name], prompt.name
