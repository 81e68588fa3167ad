"""Cancellation in every state of a request, by every way, and long after its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from unittest.mock import PropertyMock, patch

import grpc
import pytest

from millrace.core.tokens import FinishReason
from millrace.scheduler.config import SchedulerConfig
from millrace.scheduler.dispatch import WorkerLink
from millrace.testing.model_worker import expected_output
from tests.faults.client import GrpcClient, HttpStream, Reply, check_beginning, check_replies
from tests.faults.edge import Edge
from tests.faults.fault_stack import FaultStack
from tests.faults.faulty_engine import FaultyEngine
from tests.integration.gateway import queued_request

STEP_S = 0.005
LEASE_STEPS = 6
TIMEOUT_MS = 700
VICTIM = queued_request(7, max_tokens=200)


@pytest.fixture
def config(config: SchedulerConfig) -> SchedulerConfig:
    """Two requests are held at most: one runs, one waits, the others lie in the intake queue."""
    return replace(config, max_num_waiting=1, lease_steps=LEASE_STEPS)


class Scene:
    """A stack with one worker and two gateways, whose victim is held still in some state."""

    def __init__(self, stack: FaultStack, engine: FaultyEngine, edge: Edge, other: Edge) -> None:
        self.stack = stack
        self.engine = engine
        self.edge = edge
        self.other = other
        self.others: list[Reply] = []

    @property
    def was_queued(self) -> bool:
        return bool(self.others)

    async def until_running(self, num_tokens: int = 0) -> None:
        """The victim has a row, and that many tokens."""
        await self.stack.until(lambda: bool(self.stack.members("w")))
        ledger = self.stack.service.ledger
        await self.stack.until(
            lambda: all(
                sum(len(output.token_ids) for output in entry.outputs.values()) >= num_tokens
                for entry in ledger
            )
        )


Start = Callable[[], Awaitable[None]]
State = Callable[[Scene, GrpcClient, Start], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def in_the_queue(scene: Scene, client: GrpcClient, start: Start) -> AsyncIterator[None]:
    """Not fetched yet: the scheduler holds as many as it may."""
    scene.others += [client.generate(queued_request(number)) for number in (1, 2)]
    await scene.stack.until(lambda: len(scene.stack.service.ledger) == 2)
    scene.engine.gate.clear()
    await start()
    yield
    scene.engine.gate.set()


@asynccontextmanager
async def waiting(scene: Scene, client: GrpcClient, start: Start) -> AsyncIterator[None]:
    """Fetched, behind another one that has the only row."""
    scene.others.append(client.generate(queued_request(1)))
    await scene.until_running()
    scene.engine.gate.clear()
    await start()
    await scene.stack.until(lambda: scene.stack.service.scheduler.stats().num_waiting == 1)
    yield
    scene.engine.gate.set()


@asynccontextmanager
async def in_prefill(scene: Scene, client: GrpcClient, start: Start) -> AsyncIterator[None]:
    """Its prompt is in a step that has not ended."""
    scene.engine.gate.clear()
    await start()
    await scene.until_running()
    yield
    scene.engine.gate.set()


@asynccontextmanager
async def in_decode(scene: Scene, client: GrpcClient, start: Start) -> AsyncIterator[None]:
    """In a step that a plan asked for."""
    await start()
    await scene.until_running(num_tokens=3)
    scene.engine.gate.clear()
    yield
    scene.engine.gate.set()


@asynccontextmanager
async def in_a_lease(scene: Scene, client: GrpcClient, start: Start) -> AsyncIterator[None]:
    """In steps that no plan asked for, while the scheduler makes none."""
    await start()
    await scene.until_running(num_tokens=3)
    with patch.object(WorkerLink, "has_room", PropertyMock(return_value=False)):
        link = scene.stack.service._loop._workers["w"]
        await scene.stack.until(lambda: not link._outstanding and scene.engine._leased > 0)
        yield
        assert scene.engine._leased > 0


STATES = [in_the_queue, waiting, in_prefill, in_decode, in_a_lease]


@asynccontextmanager
async def _scene(stack: FaultStack) -> AsyncIterator[tuple[Scene, GrpcClient]]:
    await stack.add_engine("w", engine := FaultyEngine(step_s=STEP_S, max_num_seqs=1))
    scene = Scene(stack, engine, await stack.edge(), await stack.edge())
    async with GrpcClient(scene.edge.grpc_address) as client:
        try:
            yield scene, client
        finally:
            engine.gate.set()
        await asyncio.gather(*(other.until(lambda reply: reply.is_over) for other in scene.others))
        await stack.check_empty()
    check_replies(scene.others)
    if scene.was_queued:
        assert not engine.was_admitted(VICTIM.prompt_token_ids)


async def _late(scene: Scene, client: GrpcClient, request_id: str, reason: str) -> None:
    """Nothing changes when everybody cancels again."""
    await scene.stack.until(lambda: scene.stack.aborted(reason) == 1)
    assert not await client.abort(request_id)
    for _ in range(2):
        scene.stack.service._intake.aborted(request_id)
        assert not scene.edge.gateway._pipeline.abort_here(request_id)
    assert (scene.edge.cancelled(reason), scene.stack.aborted(reason)) == (1, 1)
    assert scene.other.cancelled(reason) == 0


@pytest.mark.parametrize("state", STATES)
async def test_cancelled_call_leaves_nothing(stack: FaultStack, state: State) -> None:
    async with _scene(stack) as (scene, client):
        victim = Reply(VICTIM)

        async def start() -> None:
            nonlocal victim
            victim = client.generate(VICTIM)
            await victim.until(lambda reply: bool(reply.request_id))

        async with state(scene, client, start):
            client.cancel(victim)
            await scene.edge.until(lambda: scene.edge.cancelled("client") == 1)
        await _late(scene, client, victim.request_id, "client")
    assert victim.error is grpc.StatusCode.CANCELLED
    check_beginning(victim)


@pytest.mark.parametrize("state", STATES)
async def test_closed_connection_leaves_nothing(stack: FaultStack, state: State) -> None:
    async with _scene(stack) as (scene, client):
        streams: list[HttpStream] = []

        async def start() -> None:
            streams.append(await HttpStream.open(scene.edge.http_address, VICTIM))
            async with asyncio.timeout(5):
                await streams[0].reader.readline()

        async with state(scene, client, start):
            (request_id,) = _live_ids(scene) - {reply.request_id for reply in scene.others}
            streams[0].leave()
            await scene.edge.until(lambda: scene.edge.cancelled("client") == 1)
        await _late(scene, client, request_id, "client")


@pytest.mark.parametrize("through_its_own_gateway", [True, False])
@pytest.mark.parametrize("state", STATES)
async def test_abort_by_id_ends_with_the_finish_reason_abort(
    stack: FaultStack, state: State, through_its_own_gateway: bool
) -> None:
    async with _scene(stack) as (scene, client), GrpcClient(scene.other.grpc_address) as stranger:
        victim = Reply(VICTIM)

        async def start() -> None:
            nonlocal victim
            victim = client.generate(VICTIM)
            await victim.until(lambda reply: bool(reply.request_id))

        async with state(scene, client, start):
            caller = client if through_its_own_gateway else stranger
            assert await caller.abort(victim.request_id) is through_its_own_gateway
            await victim.until(lambda reply: reply.is_over)
        await _late(scene, client, victim.request_id, "abort")
    assert (victim.finish, victim.num_terminals) == (FinishReason.ABORT, 1)
    check_beginning(victim)


@pytest.mark.parametrize("state", STATES)
async def test_deadline_ends_with_its_error(stack: FaultStack, state: State) -> None:
    async with _scene(stack) as (scene, client):
        victim = Reply(VICTIM)

        async def start() -> None:
            nonlocal victim
            victim = client.generate(VICTIM, timeout_ms=TIMEOUT_MS)
            await victim.until(lambda reply: bool(reply.request_id))

        async with state(scene, client, start):
            await victim.until(lambda reply: reply.is_over)
        await _late(scene, client, victim.request_id, "deadline")
    assert victim.error is grpc.StatusCode.DEADLINE_EXCEEDED
    assert victim.num_terminals == 1
    check_beginning(victim)


@pytest.mark.parametrize("state", [in_decode, in_a_lease])
async def test_stop_string_ends_what_is_still_running(stack: FaultStack, state: State) -> None:
    output, _ = expected_output(VICTIM)
    # Its character comes after the state is reached, and not before.
    place = next(
        place
        for place, token_id in enumerate(output)
        if place >= 5 and token_id > 2 and token_id not in output[:place]
    )
    async with _scene(stack) as (scene, client):
        victim = Reply(VICTIM)

        async def start() -> None:
            nonlocal victim
            victim = client.generate(VICTIM, stop=(chr(ord("!") + output[place] - 3),))
            await victim.until(lambda reply: bool(reply.request_id))

        async with state(scene, client, start):
            scene.engine.gate.set()
            await victim.until(lambda reply: reply.is_over)
        await _late(scene, client, victim.request_id, "stop_string")
    assert (victim.finish, victim.error) == (FinishReason.STOP, None)
    assert victim.tokens == output[: place + 1]


def _live_ids(scene: Scene) -> set[str]:
    sides = scene.edge.gateway._router._sides.values()
    return {request_id for side in sides for request_id in side.live}
