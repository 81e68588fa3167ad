"""A closed loop: each client sends its next request when the last one is over."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from tests.e2e.client import Answer, Client

NUM_PROMPTS = 40
MAX_TOKENS = 16


@dataclass
class ClosedLoop:
    """`num_clients` clients and `num_requests` requests, of 40 different kinds."""

    client: Client
    num_requests: int
    num_clients: int
    answers: list[Answer] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    half_sent: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for client in range(self.num_clients):
                group.create_task(self._run_client(client))

    async def expected(self) -> dict[int, list[int]]:
        """The tokens of each kind where nothing goes wrong."""
        answers = await asyncio.gather(
            *(ask(self.client, number, Answer()) for number in range(NUM_PROMPTS))
        )
        return {number: answer.tokens for number, answer in enumerate(answers)}

    def live(self) -> list[Answer]:
        """Streams with tokens out that are not over."""
        return [a for a in self.answers if a.tokens and a.finished is None]

    async def _run_client(self, client: int) -> None:
        for number in range(client, self.num_requests, self.num_clients):
            answer = Answer()
            self.answers.append(answer)
            self.kinds.append(number % NUM_PROMPTS)
            if len(self.answers) == self.num_requests // 2:
                self.half_sent.set()
            await ask(self.client, number % NUM_PROMPTS, answer)


async def ask(client: Client, number: int, answer: Answer) -> Answer:
    """The request of that kind."""
    return await client.ask(
        text=f"Once, in mill number {number},",
        max_tokens=MAX_TOKENS,
        ignore_eos=True,
        temperature=1.0,
        seed=number,
        into=answer,
    )
