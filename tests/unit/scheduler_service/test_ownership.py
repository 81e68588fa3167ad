"""One active scheduler per model."""

from __future__ import annotations

import asyncio

import pytest

from millrace.bus.memory import MemoryBus
from millrace.core.errors import Unavailable
from millrace.core.membership import SchedulerOwner
from millrace.core.model import model_slug
from millrace.scheduler import ownership
from millrace.scheduler.ownership import Ownership

MODEL = "tiny"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "CLAIM_EVERY_S", 0.001)
    monkeypatch.setattr(ownership, "RENEW_EVERY_S", 0.001)


class _FlakyBus(MemoryBus):
    """Fails the next claims, and counts them all."""

    num_failing = 0
    num_claims = 0

    async def claim_ownership(self, owner: SchedulerOwner) -> int | None:
        self.num_claims += 1
        if self.num_failing:
            self.num_failing -= 1
            raise Unavailable("no bus")
        return await super().claim_ownership(owner)


async def _claims(bus: _FlakyBus, count: int) -> None:
    target = bus.num_claims + count
    async with asyncio.timeout(5):
        while bus.num_claims < target:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_standby_claims_when_the_active_one_lets_go() -> None:
    bus = _FlakyBus()
    active = Ownership(bus, "active", "a:1", MODEL)
    first_epoch = await active.claim()
    standby = Ownership(bus, "standby", "b:1", MODEL)
    claiming = asyncio.create_task(standby.claim())
    await _claims(bus, 2)
    assert not claiming.done()
    await active.release()
    async with asyncio.timeout(5):
        assert await claiming > first_epoch
    entry = bus._owners.entries[model_slug(MODEL)]
    assert (entry.scheduler_id, entry.advertise_address) == ("standby", "b:1")


async def test_standby_that_is_older_than_the_active_one_takes_a_higher_epoch() -> None:
    bus = _FlakyBus()
    first = Ownership(bus, "first", "a:1", MODEL)
    await first.claim()
    standby = Ownership(bus, "standby", "b:1", MODEL)
    claiming = asyncio.create_task(standby.claim())
    await _claims(bus, 2)
    await first.release()
    second = Ownership(bus, "second", "c:1", MODEL)
    second_epoch = await second.claim()
    # As when its entry expires: nothing tells the epoch.
    await _claims(bus, 3)
    bus._last_epoch.clear()
    bus._owners.put(model_slug(MODEL), None)
    async with asyncio.timeout(5):
        assert await claiming > second_epoch


async def test_standby_leaves_the_model_to_the_active_one_after_an_outage(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ownership, "RENEW_EVERY_S", 0.5)
    monkeypatch.setattr(ownership, "CLAIM_EVERY_S", 0.1)
    bus = _FlakyBus()
    active = Ownership(bus, "active", "a:1", MODEL)
    epoch = await active.claim()
    claiming = asyncio.create_task(Ownership(bus, "standby", "b:1", MODEL).claim())
    await _claims(bus, 2)
    # The server that comes back has no entry any more.
    bus.num_failing = 1
    bus._last_epoch.clear()
    bus._owners.put(model_slug(MODEL), None)
    keeping = asyncio.create_task(active.keep())
    await _claims(bus, 4)
    assert not claiming.done() and not keeping.done()
    assert bus._owners.entries[model_slug(MODEL)].owner_epoch == epoch
    for task in (claiming, keeping):
        task.cancel()
    await asyncio.gather(claiming, keeping, return_exceptions=True)


async def test_claim_goes_on_while_the_bus_is_away() -> None:
    bus = _FlakyBus()
    bus.num_failing = 3
    owner = Ownership(bus, "active", "a:1", MODEL)
    assert await owner.claim() == owner.owner.owner_epoch


async def test_keep_raises_when_another_has_taken_over() -> None:
    bus = _FlakyBus()
    older = Ownership(bus, "older", "a:1", MODEL)
    await older.claim()
    bus._owners.put(model_slug(MODEL), None)
    await Ownership(bus, "newer", "b:1", MODEL).claim()
    with pytest.raises(Unavailable, match="another scheduler owns tiny"):
        async with asyncio.timeout(5):
            await older.keep()


async def test_keep_survives_a_bus_that_is_away() -> None:
    bus = _FlakyBus()
    owner = Ownership(bus, "active", "a:1", MODEL)
    await owner.claim()
    bus.num_failing = 2
    keeping = asyncio.create_task(owner.keep())
    await _claims(bus, 4)
    assert not keeping.done()
    keeping.cancel()


async def test_release_leaves_the_entry_of_another_alone() -> None:
    bus = _FlakyBus()
    await Ownership(bus, "active", "a:1", MODEL).claim()
    await Ownership(bus, "other", "b:1", MODEL).release()
    assert bus._owners.entries[model_slug(MODEL)].scheduler_id == "active"
