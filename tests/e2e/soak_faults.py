"""Random faults of a stack's processes, one after the other."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from random import Random

from millrace.testing.stack import Stack

GAP_S = (4.0, 10.0)
# The supervisor gives up on a part that ends five times in a minute.
LEAST_BETWEEN_KILLS_S = 20.0
LONGEST_STOP_S = 6.0
# Both workers never: a request that met three of their deaths would end INTERNAL, as it should.
KILLED_ALL_ALONG = ("worker-2", "valkey", "tokenizer", "collector")
# In the first part only, so that their memory can be watched for the rest of the time.
KILLED_EARLY = ("scheduler", "nats")
STOPPED = ("worker-1", "worker-2", "scheduler", "valkey", "tokenizer")


class SoakFaults:
    """Kills and stops; `counts` says what was done."""

    def __init__(self, stack: Stack, seed: int) -> None:
        self.counts: Counter[str] = Counter()
        self._stack = stack
        self._random = Random(f"faults {seed}")
        self._killed_s: dict[str, float] = {}

    async def run(self, until_s: float, early_until_s: float) -> None:
        """A fault every few seconds."""
        while time.monotonic() < until_s:
            is_early = time.monotonic() < early_until_s
            victims = KILLED_EARLY + KILLED_ALL_ALONG if is_early else KILLED_ALL_ALONG
            if self._random.random() < 0.5:
                self._kill(self._random.choice(victims))
            else:
                await self._stop(self._random.choice(STOPPED))
            await asyncio.sleep(self._random.uniform(*GAP_S))

    def _kill(self, name: str) -> None:
        if time.monotonic() - self._killed_s.get(name, -1e9) < LEAST_BETWEEN_KILLS_S:
            return
        self._killed_s[name] = time.monotonic()
        self._signal(name, signal.SIGKILL)

    async def _stop(self, name: str) -> None:
        pid = self._stack.pid_of(name)
        if self._signal(name, signal.SIGSTOP):
            try:
                await asyncio.sleep(self._random.uniform(0.2, LONGEST_STOP_S))
            finally:
                os.kill(pid, signal.SIGCONT)

    def _signal(self, name: str, number: signal.Signals) -> bool:
        try:
            os.kill(self._stack.pid_of(name), number)
        except ProcessLookupError:
            # It has ended already and is about to be started again.
            return False
        self.counts[f"{number.name} {name}"] += 1
        return True
