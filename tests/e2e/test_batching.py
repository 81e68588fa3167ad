"""Continuous batching, seen from outside."""

from __future__ import annotations

import asyncio

import pytest

from tests.e2e.client import Answer, Client

NUM_STREAMS = 32

pytestmark = pytest.mark.e2e


async def test_staggered_streams_share_large_batches(client: Client) -> None:
    before = (await client.scheduler_stats()).workers[0]

    async def stream(number: int) -> Answer:
        await asyncio.sleep(number * 0.02)
        return await client.ask(text=f"Stream {number}:", max_tokens=96, ignore_eos=True)

    answers = await asyncio.gather(*(stream(number) for number in range(NUM_STREAMS)))
    after = (await client.scheduler_stats()).workers[0]
    assert all(len(answer.tokens) == 96 for answer in answers)
    num_rows = after.num_decode_rows - before.num_decode_rows
    num_steps = after.num_decode_steps - before.num_decode_steps
    assert num_rows / num_steps > 24
    await client.until_idle()


async def test_late_short_request_overtakes_earlier_long_ones(client: Client) -> None:
    async def long(number: int) -> Answer:
        return await client.ask(text=f"Long story {number}:", max_tokens=80, ignore_eos=True)

    running = [asyncio.create_task(long(number)) for number in range(8)]
    # The state is in another process: there is no event to wait for.
    while (await client.scheduler_stats()).status.num_running < 8:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    steps_before = (await client.scheduler_stats()).workers[0].num_steps
    short = await client.ask(text="Short:", max_tokens=4, ignore_eos=True)
    steps_after = (await client.scheduler_stats()).workers[0].num_steps
    answers = await asyncio.gather(*running)
    assert all(short.ended_s < answer.ended_s for answer in answers)
    # Two steps under way, one prefill, four tokens, and what runs while the last one travels.
    assert steps_after - steps_before <= 2 + 1 + 4 + 3


async def test_choices_of_one_request_share_its_prompt(client: Client) -> None:
    before = (await client.scheduler_stats()).workers[0]
    text = "The wheel turns and the water runs. " * 20
    answer = await client.ask(
        text=text, max_tokens=8, temperature=1.0, seed=7, num_choices=3, ignore_eos=True
    )
    after = (await client.scheduler_stats()).workers[0]
    assert {choice: len(ids) for choice, ids in answer.token_ids.items()} == {0: 8, 1: 8, 2: 8}
    assert len({tuple(ids) for ids in answer.token_ids.values()}) > 1
    num_prefilled = after.num_prefill_tokens - before.num_prefill_tokens
    assert num_prefilled < 1.6 * answer.num_prompt_tokens


async def test_same_seed_gives_the_same_text_alone_and_in_a_crowd(client: Client) -> None:
    async def seeded(seed: int) -> Answer:
        return await client.ask(
            text="A poem:", max_tokens=24, temperature=0.9, top_p=0.9, seed=seed
        )

    alone = await seeded(11)
    crowd = await asyncio.gather(*(seeded(seed) for seed in (3, 11, 4, 11, 5, 6)))
    assert crowd[1].tokens == alone.tokens
    assert crowd[3].tokens == alone.tokens
    assert crowd[0].tokens != alone.tokens
