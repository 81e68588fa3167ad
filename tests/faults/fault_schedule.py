"""Random sequences of faults, the same for the same seed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

import grpc

from millrace.core.request import QueuedRequest
from tests.faults.client import GrpcClient, Reply
from tests.faults.in_process_cluster import WORKER_IDS, InProcessCluster
from tests.integration.gateway import queued_request

LASTS_S = 3.0
END_TIMEOUT_S = 30.0
RETRY_S = 0.1
# What a client may be told whose request was not accepted.
REFUSALS = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
NUM_REQUESTS = 30
NUM_FAULTS = 10
# A request that was present at three of them would end INTERNAL, as it should.
DEADLY = ("kill worker", "freeze worker", "fail step")
MOST_DEADLY = 2
HARMLESS = (
    *("end worker", "kill scheduler", "cut attach", "outage"),
    *("cancel", "abort", "cancel", "abort"),
)


@dataclass(frozen=True)
class Fault:
    """What happens when; `for_s` until the worker, or the bus, is back."""

    at_s: float
    kind: str
    worker_id: str
    for_s: float

    def __str__(self) -> str:
        return f"{self.at_s:.2f} s: {self.kind} ({self.worker_id}, {self.for_s:.2f} s)"


def draw_faults(seed: int) -> list[Fault]:
    """A sequence, in order of time."""
    random = Random(seed)
    kinds = random.choices(DEADLY, k=random.randint(0, MOST_DEADLY))
    kinds += random.choices(HARMLESS, k=NUM_FAULTS - len(kinds))
    faults = [
        Fault(random.uniform(0.1, LASTS_S), kind, random.choice(WORKER_IDS), random.uniform(0, 2.5))
        for kind in kinds
    ]
    return sorted(faults, key=lambda fault: fault.at_s)


class FaultRun:
    """Requests all along, and the faults in between."""

    def __init__(self, cluster: InProcessCluster, client: GrpcClient, seed: int) -> None:
        self.faults = draw_faults(seed)
        self.replies: list[Reply] = []
        self.left: list[Reply] = []
        self.num_refusals = 0
        self._cluster = cluster
        self._client = client
        self._random = Random(f"requests {seed}")
        self._actions: dict[str, Callable[[Fault], Awaitable[None]]] = {
            "kill worker": self._kill_worker,
            "end worker": self._end_worker,
            "freeze worker": self._freeze_worker,
            "fail step": self._fail_step,
            "kill scheduler": lambda _: cluster.kill_scheduler(),
            "cut attach": lambda _: cluster.cut_attach(),
            "outage": self._outage,
            "cancel": self._cancel,
            "abort": self._abort,
        }

    async def play(self) -> None:
        """Returns when everything is whole again and every reply is over."""
        began_s = time.monotonic()
        faults = [asyncio.create_task(self._strike(fault, began_s)) for fault in self.faults]
        asking: list[asyncio.Task[None]] = []
        try:
            for number in range(1, NUM_REQUESTS + 1):
                asked = queued_request(number, max_tokens=self._random.choice((5, 40, 120)))
                asking.append(asyncio.create_task(self._ask(asked)))
                await asyncio.sleep(self._random.uniform(0, 2 * LASTS_S / NUM_REQUESTS))
            await asyncio.gather(*faults)
            await self._cluster.heal()
            async with asyncio.timeout(END_TIMEOUT_S):
                await asyncio.gather(*asking)
        finally:
            for task in (*faults, *asking):
                task.cancel()
            await asyncio.gather(*faults, *asking, return_exceptions=True)

    async def _ask(self, asked: QueuedRequest) -> None:
        """As clients do: again, where it was not accepted."""
        while True:
            reply = self._client.generate(asked)
            self.replies.append(reply)
            await reply.until(lambda reply: reply.is_over, END_TIMEOUT_S)
            if reply.request_id or reply.error not in REFUSALS:
                return
            self.replies.remove(reply)
            self.num_refusals += 1
            await asyncio.sleep(RETRY_S)

    async def _strike(self, fault: Fault, began_s: float) -> None:
        await asyncio.sleep(max(0.0, began_s + fault.at_s - time.monotonic()))
        await self._actions[fault.kind](fault)

    async def _kill_worker(self, fault: Fault) -> None:
        await self._cluster.kill_worker(fault.worker_id)
        await asyncio.sleep(fault.for_s)
        await self._cluster.start_worker(fault.worker_id)

    async def _end_worker(self, fault: Fault) -> None:
        await self._cluster.end_worker(fault.worker_id)
        await asyncio.sleep(fault.for_s)
        await self._cluster.start_worker(fault.worker_id)

    async def _freeze_worker(self, fault: Fault) -> None:
        if (engine := self._cluster.engine(fault.worker_id)) is not None:
            engine.gate.clear()
            await asyncio.sleep(fault.for_s)
            engine.gate.set()

    async def _fail_step(self, fault: Fault) -> None:
        if (engine := self._cluster.engine(fault.worker_id)) is not None:
            engine.num_broken_steps = 1

    async def _outage(self, fault: Fault) -> None:
        self._cluster.bus.is_out = True
        await asyncio.sleep(fault.for_s)
        self._cluster.bus.is_out = False

    async def _cancel(self, fault: Fault) -> None:
        if (reply := self._running()) is not None:
            self.left.append(reply)
            self._client.cancel(reply)

    async def _abort(self, fault: Fault) -> None:
        if (reply := self._running()) is not None:
            self.left.append(reply)
            await self._client.abort(reply.request_id)

    def _running(self) -> Reply | None:
        running = [reply for reply in self.replies if reply.request_id and not reply.is_over]
        return self._random.choice(running) if running else None
