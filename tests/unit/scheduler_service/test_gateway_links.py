"""Bounded buffers to the gateways, and the clock of those that are away."""

from __future__ import annotations

import asyncio

import pytest

from millrace.core.errors import Overloaded, Unavailable
from millrace.core.membership import ResumeQuery
from millrace.core.tokens import TokenDelta, TokenFrame
from millrace.scheduler.gateway_links import MAX_BUFFERED_S, GatewayLinks, LinkEvent
from tests.unit.scheduler_service.desk import Ear, until

QUERY = ResumeQuery(("r",))


class _Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def links(clock: _Clock) -> GatewayLinks:
    return GatewayLinks(clock)


def _frame(num_tokens: int) -> TokenFrame:
    return TokenFrame(1, deltas=[TokenDelta("r", 0, 0, [1] * num_tokens)])


async def test_events_arrive_in_order(links: GatewayLinks) -> None:
    ear = Ear(links.attach("a"))
    events: list[LinkEvent] = [QUERY, _frame(1), ResumeQuery(("s",))]
    for event in events:
        assert links.send("a", event)
    await until(lambda: len(ear.heard) == len(events))
    assert ear.heard == events


async def test_too_many_bytes_end_that_stream_only(links: GatewayLinks) -> None:
    slow, fine = links.attach("slow"), links.attach("fine")
    assert links.send("slow", _frame(900_000))
    assert not links.send("slow", _frame(900_000))
    links.broadcast(QUERY)
    with pytest.raises(Overloaded, match="unread"):
        await anext(slow.events())
    assert await anext(fine.events()) == QUERY


async def test_events_left_too_long_end_that_stream_only(
    links: GatewayLinks, clock: _Clock
) -> None:
    slow, fine = links.attach("slow"), links.attach("fine")
    links.send("slow", QUERY)
    clock.now_s += MAX_BUFFERED_S + 0.1
    links.broadcast(QUERY)
    with pytest.raises(Overloaded):
        await anext(slow.events())
    assert await anext(fine.events()) == QUERY


async def test_reading_makes_room_again(links: GatewayLinks) -> None:
    link = links.attach("a")
    for _ in range(5):
        assert links.send("a", _frame(900_000))
        await anext(link.events())


async def test_gateway_that_overflowed_counts_as_absent(links: GatewayLinks, clock: _Clock) -> None:
    link = links.attach("a")
    links.send("a", _frame(900_000))
    links.send("a", _frame(900_000))
    clock.now_s += 3.0
    links.detach(link)
    assert links.absent_for_s("a") == 3.0


async def test_absent_clock_runs_from_the_detachment_to_the_next_stream(
    links: GatewayLinks, clock: _Clock
) -> None:
    link = links.attach("a")
    clock.now_s += 10.0
    assert links.absent_for_s("a") == 0.0
    links.detach(link)
    clock.now_s += 2.0
    assert not links.send("a", QUERY)
    assert links.absent_for_s("a") == 2.0
    links.attach("a")
    assert links.absent_for_s("a") == 0.0


async def test_clock_of_a_gateway_never_seen_starts_when_it_is_first_asked_for(
    links: GatewayLinks, clock: _Clock
) -> None:
    assert links.absent_for_s("a") == 0.0
    clock.now_s += 4.0
    assert links.absent_for_s("a") == 4.0


async def test_clocks_of_gateways_without_requests_are_forgotten(
    links: GatewayLinks, clock: _Clock
) -> None:
    links.absent_for_s("a")
    links.absent_for_s("b")
    links.forget_all_but({"a"})
    clock.now_s += 4.0
    assert (links.absent_for_s("a"), links.absent_for_s("b")) == (4.0, 0.0)


async def test_second_stream_of_a_gateway_ends_the_first(links: GatewayLinks) -> None:
    older = links.attach("a")
    ear = Ear(older)
    newer = links.attach("a")
    async with asyncio.timeout(1):
        await ear.task
    links.detach(older)
    assert links.send("a", QUERY)
    assert await anext(newer.events()) == QUERY


async def test_closed_links_end_every_stream_and_take_no_new_one(links: GatewayLinks) -> None:
    ear = Ear(links.attach("a"))
    links.close()
    async with asyncio.timeout(1):
        await ear.task
    with pytest.raises(Unavailable):
        links.attach("b")
