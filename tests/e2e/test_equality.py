"""Greedy text through the whole stack equals transformers in float32, token for token."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace.testing.stack import Stack, start_stack
from tests.e2e.ask_prompts import ask_crowd, ask_prompt, ask_staggered
from tests.e2e.client import Answer, Client
from tests.e2e.conftest import CACHE
from tests.e2e.prompts import Prompt, Reference, load_prompts, load_references

PROMPTS = load_prompts()
REFERENCES = load_references()

pytestmark = pytest.mark.e2e


def _assert_equal(answer: Answer, reference: Reference) -> None:
    assert answer.num_prompt_tokens == len(reference.prompt_token_ids), reference.name
    assert answer.tokens == reference.output_token_ids, reference.name


async def _counts(client: Client) -> tuple[int, int]:
    stats = await client.scheduler_stats()
    prefill = sum(worker.num_prefill_tokens for worker in stats.workers)
    cached = sum(worker.num_cached_tokens for worker in stats.workers)
    return prefill, cached


@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: prompt.name)
async def test_alone(client: Client, prompt: Prompt) -> None:
    _assert_equal(await ask_prompt(client, prompt), REFERENCES[prompt.name])


# In the second, all full blocks but the first hold the same tokens: only place tells them apart.
@pytest.mark.parametrize("name", ["numbered-1300", "repeat-200"])
async def test_with_prefix_hits_and_only_the_rest_is_prefilled(client: Client, name: str) -> None:
    prompt = next(prompt for prompt in PROMPTS if prompt.name == name)
    reference = REFERENCES[prompt.name]
    _assert_equal(await ask_prompt(client, prompt), reference)
    prefill_before, cached_before = await _counts(client)
    _assert_equal(await ask_prompt(client, prompt), reference)
    prefill, cached = await _counts(client)
    num_tokens = len(reference.prompt_token_ids)
    num_full_blocks = (num_tokens - 1) // 32
    assert cached - cached_before == num_full_blocks * 32
    assert prefill - prefill_before == num_tokens - num_full_blocks * 32


async def test_thirty_two_at_once_with_staggered_arrivals(client: Client) -> None:
    prompts = [*PROMPTS, *PROMPTS[:2]]
    answers = await ask_staggered(client, prompts)
    for prompt, answer in zip(prompts, answers, strict=True):
        _assert_equal(answer, REFERENCES[prompt.name])
    await client.until_idle()


@pytest.fixture(scope="module")
def cramped_stack(models: Path) -> Iterator[Stack]:
    """Room for 2,048 tokens in all, and chunks of at most 96: everything has to share."""
    settings = {
        "MILLRACE_WORKER_DTYPE": "float32",
        "MILLRACE_WORKER_NUM_BLOCKS": "64",
        "MILLRACE_SCHEDULER_MAX_NUM_BATCHED_TOKENS": "96",
    }
    with start_stack(CACHE / "cramped", models, settings=settings) as started:
        yield started


async def test_after_preemption_in_chunks_in_a_cache_of_64_blocks(cramped_stack: Stack) -> None:
    client = Client(cramped_stack)
    crowd = asyncio.create_task(ask_crowd(client))
    answers = await asyncio.gather(*(ask_prompt(client, prompt) for prompt in PROMPTS))
    await crowd
    stats = await client.scheduler_stats()
    assert stats.num_preemptions > 0
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        _assert_equal(answer, REFERENCES[prompt.name])
    await client.until_idle()
    assert await client.num_response_cache_hits() == 0
    await client.close()
