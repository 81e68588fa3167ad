"""Clients leave at random moments, in every way there is: nothing of them stays behind.

MILLRACE_TEST_SEED draws other moments.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from random import Random

import pytest

from millrace.scheduler.config import SchedulerConfig
from millrace.testing.tokenizers import write_byte_level
from millrace.tokenizer.codec import Codec, load_codec
from tests.faults.hold_watch import HoldWatch, Mark
from tests.faults.leaks import Baseline
from tests.faults.leavers import Leavers, Visit
from tests.faults.nats_stack import NatsStack

SEED = int(os.environ.get("MILLRACE_TEST_SEED", "1"))
NUM_CLIENTS = 40
STEP_S = 0.008
# What a client that has left may still hold, whichever is longer.
MOST_HELD_S = 0.5
MOST_STEPS = 3


class Crowd:
    """Clients that come as others go, and what became of each."""

    def __init__(self, edge: NatsStack, codec: Codec, seed: int) -> None:
        self.visits: list[Visit] = []
        self._marks: dict[int, Mark] = {}
        self._edge = edge
        self._codec = codec
        self._seed = seed
        self._watch = HoldWatch(edge.stack.service)

    async def run(self, leavers: Leavers, num_leaving: int) -> None:
        """Until so many have left before the end of their reply."""
        arrivals = self._arrivals(leavers.ways, num_leaving)
        watching = asyncio.create_task(self._watch.run())
        clients = [
            asyncio.create_task(self._clients(leavers, arrivals)) for _ in range(NUM_CLIENTS)
        ]
        try:
            await asyncio.gather(*clients)
            await self._edge.check_all()
        finally:
            for task in (watching, *clients):
                task.cancel()
            await asyncio.gather(watching, *clients, return_exceptions=True)

    def late(self) -> list[tuple[float, int, str, int]]:
        """Clients whose request was held longer than it may be after they had left."""
        held = [(*self._held(visit), visit.kind, visit.number) for visit in self.gone]
        return [each for each in held if each[0] > MOST_HELD_S and each[1] > MOST_STEPS]

    @property
    def gone(self) -> list[Visit]:
        return [visit for visit in self.visits if visit.has_left]

    def times_held_s(self) -> list[float]:
        return sorted(self._held(visit)[0] for visit in self.gone)

    def _arrivals(self, ways: list[str], num_leaving: int) -> Iterator[Visit]:
        """Every way to leave equally often, in any order."""
        random = Random(self._seed)
        while len(self._marks) < num_leaving:
            for way in random.sample(ways, len(ways)):
                visit = Visit(len(self.visits), way)
                self.visits.append(visit)
                yield visit

    async def _clients(self, leavers: Leavers, arrivals: Iterator[Visit]) -> None:
        for visit in arrivals:
            random = Random(f"{self._seed}-{visit.number}")
            try:
                await leavers.visit(visit, random, partial(self._left, visit))
                for reading in visit.readings:
                    reading.check(self._codec)
            except BaseException as error:
                error.add_note(f"seed {self._seed}, client {visit.number}, who {visit.kind}")
                raise

    def _left(self, visit: Visit) -> None:
        self._marks[visit.number] = self._watch.mark()

    def _held(self, visit: Visit) -> tuple[float, int]:
        mark = self._marks[visit.number]
        return max(self._watch.held_after(seed, mark) for seed in visit.seeds)


@pytest.mark.parametrize("num_leaving", [200, pytest.param(2000, marks=pytest.mark.slow)])
async def test_clients_that_leave_at_random_moments_leave_nothing_behind(
    no_descriptor_stays_open: None, config: SchedulerConfig, tmp_path: Path, num_leaving: int
) -> None:
    codec = load_codec(write_byte_level(tmp_path))
    async with NatsStack.open(tmp_path, config, 2, STEP_S) as edge:
        async with aclosing(Leavers(edge.edge)) as leavers:
            await Crowd(edge, codec, SEED).run(leavers, len(leavers.ways))
        before = Baseline.take()
        crowd = Crowd(edge, codec, SEED)
        async with aclosing(Leavers(edge.edge)) as leavers:
            await crowd.run(leavers, num_leaving)
        await before.check()

    held_s = crowd.times_held_s()
    print(
        f"seed {SEED}: {len(held_s)} of {len(crowd.visits)} clients left; what they had was held "
        f"for {held_s[len(held_s) // 2]:.3f} s, p99 {held_s[len(held_s) * 99 // 100]:.3f} s, "
        f"at most {held_s[-1]:.3f} s"
    )
    assert not crowd.late(), f"seed {SEED}"
