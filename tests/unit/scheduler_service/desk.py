"""The intake with everything around it but workers and sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from millrace.bus.base import HeldRequest
from millrace.bus.memory import MemoryBus
from millrace.core.dead_letter import DeadLetter
from millrace.core.membership import ResumeQuery
from millrace.core.request import Priority, QueuedRequest
from millrace.core.sampling import SamplingSpec
from millrace.core.step import StepResult
from millrace.core.tokens import TokenFrame
from millrace.scheduler.dead_letters import DeadLetters
from millrace.scheduler.frames import FrameSender
from millrace.scheduler.gateway_links import GatewayLink, GatewayLinks, LinkEvent
from millrace.scheduler.intake import Intake
from millrace.scheduler.ledger import Ledger
from millrace.scheduler.policy import SchedulerPolicy
from millrace.scheduler.scheduler import Scheduler
from millrace.telemetry.metrics import SchedulerMetrics, create_registry
from millrace.testing.model_worker import ModelWorker

MODEL = "tiny"
WAIT_S = 5.0

Event = TypeVar("Event", bound=LinkEvent)


def queued_request(
    request_id: str = "r",
    *,
    prompt: tuple[int, ...] = (1, 2, 3),
    max_tokens: int = 4,
    num_choices: int = 1,
    gateway_id: str = "gateway",
    deadline_unix_ms: int = 0,
) -> QueuedRequest:
    return QueuedRequest(
        request_id=request_id,
        gateway_id=gateway_id,
        model=MODEL,
        prompt_token_ids=list(prompt),
        sampling=SamplingSpec(seed=3),
        stop_token_ids=(),
        max_tokens=max_tokens,
        num_choices=num_choices,
        priority=Priority.NORMAL,
        deadline_unix_ms=deadline_unix_ms,
        arrival_unix_ns=0,
    )


def unreadable_letter() -> DeadLetter:
    return DeadLetter.of_payload(
        b"garbage",
        request_id="",
        model=MODEL,
        subject="mr.v1.req.tiny.normal",
        cause="unreadable: DecodeError",
        num_attempts=1,
    )


class Held(HeldRequest):
    """A delivery that writes down how it was settled."""

    def __init__(self, request: QueuedRequest | None, num_delivered: int = 1) -> None:
        self.request = request
        self.dead_letter = None if request else unreadable_letter()
        self.num_delivered = num_delivered
        self.published_unix_ns = 1_000
        self.settlements: list[str] = []

    async def in_progress(self) -> None:
        self.settlements.append("in_progress")

    async def acknowledge(self) -> None:
        self.settlements.append("acknowledge")

    async def give_back(self, delay_s: float = 0.0) -> None:
        self.settlements.append("give_back")

    async def discard(self) -> None:
        self.settlements.append("discard")


class Queue:
    """A work queue that delivers what the test puts in."""

    def __init__(self) -> None:
        self.deliveries: asyncio.Queue[Held] = asyncio.Queue()
        self.num_fetches = 0

    async def fetch(self, max_requests: int, timeout_s: float) -> list[HeldRequest]:
        self.num_fetches += 1
        return [await self.deliveries.get()]


class QueueBus(MemoryBus):
    """The bus in memory, with deliveries by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.queues = {priority: Queue() for priority in Priority}

    async def work_queue(self, model: str, priority: Priority) -> Queue:
        return self.queues[priority]


class Ear:
    """Everything that was sent on one link."""

    def __init__(self, link: GatewayLink) -> None:
        self.heard: list[LinkEvent] = []
        self.task = asyncio.create_task(self._listen(link))

    def frames(self) -> list[TokenFrame]:
        return [event for event in self.heard if isinstance(event, TokenFrame)]

    def queries(self) -> list[ResumeQuery]:
        return [event for event in self.heard if isinstance(event, ResumeQuery)]

    async def _listen(self, link: GatewayLink) -> None:
        async for event in link.events():
            self.heard.append(event)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


class Desk:
    """`deliver` hands a message over; `step` runs the worker once.

    The gateway of a first delivery is attached, and its client waits, unless `is_wanted` is False.
    """

    def __init__(self, *, gateway_grace_s: float = 60.0, max_num_waiting: int = 8) -> None:
        self.bus = QueueBus()
        self.clock_s = 0.0
        self.scheduler = Scheduler(SchedulerPolicy(max_num_waiting=max_num_waiting, lease_steps=0))
        self.ledger = Ledger()
        self.links = GatewayLinks(lambda: self.clock_s)
        self.frames = FrameSender(self.ledger, self.links)
        self.frames.owner_epoch = 7
        self.num_work_calls = 0
        metrics = SchedulerMetrics(create_registry("scheduler"))
        self.intake = Intake(
            self.bus,
            self.scheduler,
            self.ledger,
            self.links,
            self.frames,
            DeadLetters(self.bus, metrics),
            max_held=4,
            gateway_grace_s=gateway_grace_s,
            on_work=self._count_work,
            metrics=metrics,
        )
        self.worker = ModelWorker()
        self.scheduler.add_worker(
            "w", num_blocks=64, block_size=16, max_num_seqs=8, max_model_len=256, prefix_seed=b"s"
        )
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._running = asyncio.create_task(self.intake.run(MODEL))

    async def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    def attach(self, gateway_id: str = "gateway") -> Ear:
        ear = Ear(self.links.attach(gateway_id))
        self.intake.gateway_attached(gateway_id)
        return ear

    def register(self, request_id: str, gateway_id: str = "gateway") -> None:
        link = self.links._links.get(gateway_id) or self.links.attach(gateway_id)
        link.want(request_id)
        self.intake.registered(request_id)

    def deliver(
        self, request: QueuedRequest | None, num_delivered: int = 1, *, is_wanted: bool = True
    ) -> Held:
        if request is not None and num_delivered == 1 and is_wanted:
            self.register(request.request_id, request.gateway_id)
        held = Held(request, num_delivered)
        self.bus.queues[Priority.NORMAL].deliveries.put_nowait(held)
        return held

    async def deliver_and_wait(
        self, request: QueuedRequest, num_delivered: int = 1, *, is_wanted: bool = True
    ) -> Held:
        held = self.deliver(request, num_delivered, is_wanted=is_wanted)
        await until(
            lambda: (e := self.ledger.get(request.request_id)) is not None and e.held is held
        )
        return held

    def step(self) -> StepResult | None:
        plan = self.scheduler.schedule("w", 5_000)
        if plan is None:
            return None
        result = self.worker.execute(plan)
        self.frames.send_outcome(self.scheduler.apply("w", result, 6_000))
        return result

    def run(self) -> None:
        while self.step() is not None:
            pass

    def _count_work(self) -> None:
        self.num_work_calls += 1
