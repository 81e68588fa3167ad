"""Fault F10: two schedulers that both believe they own a model."""

from __future__ import annotations

import asyncio

import pytest

from millrace.bus.memory import MemoryBus
from millrace.scheduler import ownership
from millrace.scheduler.config import SchedulerConfig
from tests.faults.fault_stack import FaultStack
from tests.faults.oracle import check_tokens
from tests.integration.gateway import ScriptedGateway, queued_request


async def test_f10_paused_owner_and_its_successor_give_one_token_sequence(
    config: SchedulerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The paused one does not hear that it has been replaced.
    monkeypatch.setattr(ownership, "RENEW_EVERY_S", 600.0)
    bus = MemoryBus()
    paused, successor = FaultStack(bus, config), FaultStack(bus, config)
    await paused.start()
    node = await paused.add_worker()
    gateway = await paused.gateway()
    answer = await gateway.send(bus, queued_request(max_tokens=200))
    await gateway.until(lambda: len(answer.tokens.get(0, ())) > 3)
    node.engine.gate.clear()
    (held,) = (entry.held for entry in paused.service.ledger)
    bus._owners.put(next(iter(bus._owners.entries)), None)
    await successor.start()
    # It has the worker from now on, and its word when the step under way is over.
    frames = successor.service._frames
    await successor.until(lambda: node.servicer._owner_epoch == frames.owner_epoch)
    second = ScriptedGateway(successor.address)
    second.answers = gateway.answers
    await second.attach()
    successor.gateways.append(second)
    # The queue had no word from the paused one: it delivers again, and not to that one.
    paused.service._intake._max_held = 0
    while not len(successor.service.ledger):
        await held.give_back()
        await asyncio.sleep(0.01)
    num_frames = len(gateway.frames)
    num_known = len(answer.tokens[0])
    node.engine.gate.set()
    await successor.until(lambda: "w" in successor.worker_ids())
    await second.until_over()

    check_tokens([answer])
    starts = [delta.start_index for frame in second.frames for delta in frame.deltas]
    assert starts == list(range(num_known, 200))
    epochs = {frame.attempt for frame in second.frames}
    assert min(epochs) > max(frame.attempt for frame in gateway.frames)
    assert len(gateway.frames) == num_frames, "the paused one has no worker any more"
    assert not paused.worker_ids()
    (request,) = paused.service.scheduler._requests.values()
    assert not request.suspicion.num_faults, "a worker that was taken over has not died"
    await gateway.stream.gone(answer.request.request_id)
    await paused.check_empty()
    successor.workers, paused.workers = paused.workers, {}
    await successor.check_empty()
    assert not bus.dead_letters
    await paused.stop()
    await successor.stop()
