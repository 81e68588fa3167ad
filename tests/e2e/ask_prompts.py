"""The test prompts, asked through a stack's edge."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tests.e2e.client import Answer, Client
from tests.e2e.prompts import Prompt

STAGGER_S = 0.05


async def ask_prompt(client: Client, prompt: Prompt) -> Answer:
    """The greedy answer."""
    return await client.ask(
        text=prompt.text, messages=prompt.messages, max_tokens=prompt.max_tokens
    )


async def ask_crowd(client: Client) -> list[Answer]:
    """Many small requests at once: each row begins with one block and grows into a third."""
    return await asyncio.gather(
        *(
            client.ask(text=f"{number} wheels turn", max_tokens=64, ignore_eos=True)
            for number in range(48)
        )
    )


async def ask_staggered(client: Client, prompts: Sequence[Prompt]) -> list[Answer]:
    """All answers; one prompt after another comes while the earlier ones run."""

    async def later(index: int, prompt: Prompt) -> Answer:
        await asyncio.sleep(index * STAGGER_S)
        return await ask_prompt(client, prompt)

    return await asyncio.gather(*(later(*entry) for entry in enumerate(prompts)))
