"""When a refused client may come back, and which requests cannot make their deadline."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from millrace.core.errors import Overloaded
from millrace.core.membership import SchedulerStatus
from millrace.core.model import ModelInfo
from millrace.core.request import Priority
from millrace.gateway.drain_rate import DrainRate
from millrace.gateway.pipeline import PipelineLimits

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

MODEL = ModelInfo("tiny", "r", "float32", 64, 512)


def status(num_waiting: int, num_running: int = 0) -> SchedulerStatus:
    return SchedulerStatus(MODEL, 1, num_waiting, num_running, 10, 10, 7)


class Clock:
    """Seconds, set by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def rate_of(clock: Clock, num_ends: int, every_s: float) -> DrainRate:
    rate = DrainRate(clock=clock)
    for _ in range(num_ends):
        rate.on_finished("tiny")
        clock.now_s += every_s
    return rate


def test_rate_is_over_the_window_only() -> None:
    clock = Clock()
    rate = rate_of(clock, 100, 0.5)
    assert rate.per_s("tiny") == pytest.approx(2.0, rel=0.05)
    assert rate.per_s("other") == 0.0

    clock.now_s += 31

    assert rate.per_s("tiny") == 0.0


@pytest.mark.parametrize(
    ("num_waiting", "num_running", "num_live", "expected"),
    [
        (20, 0, 20, 10.0),
        # Half of it is another gateway's, whose ends are not seen here.
        (20, 20, 20, 5.0),
        (0, 20, 20, 1.0),
        (100_000, 0, 100_000, 60.0),
    ],
)
def test_retry_after_is_the_queue_over_the_rate(
    num_waiting: int, num_running: int, num_live: int, expected: float
) -> None:
    rate = rate_of(Clock(), 40, 0.5)
    found = rate.retry_after_s("tiny", status(num_waiting, num_running), num_live)
    assert found == pytest.approx(expected, rel=0.05)


def test_without_evidence_nothing_is_foretold() -> None:
    rate = DrainRate(clock=Clock())
    assert rate.retry_after_s("tiny", status(50), 50) is None
    assert rate.forecast("tiny", status(50), 50) is None
    rate.on_finished("tiny")
    assert rate.forecast("tiny", status(50), 50) is None
    assert rate_of(Clock(), 20, 1.0).forecast("tiny", None, 50) is None


async def load(gateway: Harness, num_waiting: int) -> None:
    """16 requests have ended, 2 per second; then `num_waiting` wait, all of this gateway."""
    for _ in range(16):
        await gateway.read(await gateway.open())
        gateway.now_s += 0.5
    before = gateway.directory.status("tiny")
    assert before is not None
    gateway.directory.on_status(replace(before, num_waiting=num_waiting))
    gateway.silence()


async def test_full_queue_tells_when_it_has_drained(gateway: Harness) -> None:
    await load(gateway, 20)
    answer = await gateway.open()
    gateway.bus.refusal = Overloaded("the queue is full", retry_after_s=1.0)
    status_now = gateway.directory.status("tiny")
    assert status_now is not None
    gateway.directory.on_status(replace(status_now, num_waiting=1, num_running=0))
    gateway.now_s += 15

    # 16 ends in 23 s, and one request that waits.
    with pytest.raises(Overloaded) as caught:
        await gateway.open()

    assert caught.value.retry_after_s == pytest.approx(23 / 16, rel=0.01)
    answer.abandon()


async def test_request_that_would_wait_past_its_deadline_is_refused_with_the_numbers(
    gateway: Harness,
) -> None:
    await load(gateway, 20)
    opened = [await gateway.open() for _ in range(20)]
    num_published = len(gateway.bus.published)
    body = {"messages": [{"role": "user", "content": "hi"}], "timeout_ms": 5000}

    async with gateway.client() as client:
        reply = await client.post("/v1/chat/completions", json=body)

    assert reply.status_code == 429
    assert reply.headers["retry-after"] == "10"
    message = reply.json()["error"]["message"]
    assert "20 requests" in message
    assert "2 end per second" in message
    assert "10 s" in message
    assert "deadline is in 5 s" in message
    assert len(gateway.bus.published) == num_published
    opened.append(await gateway.open(timeout_ms=11_000))
    opened.append(await gateway.open(timeout_ms=5_000, priority=Priority.HIGH))
    for answer in opened:
        answer.abandon()
    assert gateway.pipeline.num_in_flight == 0


async def test_failed_requests_are_no_drain(gateway: Harness) -> None:
    gateway.silence()
    answer: Any = await gateway.open(timeout_ms=10)
    with pytest.raises(Exception, match="deadline"):
        await gateway.read(answer)

    assert gateway.pipeline._forecast.rate.per_s("tiny") == 0.0


class TestAtTheCap:
    """The gateway's own limit of requests in flight."""

    @pytest.fixture
    def limits(self) -> PipelineLimits:
        return PipelineLimits(max_in_flight=1)

    async def test_retry_after_follows_the_rate(self, gateway: Harness) -> None:
        for _ in range(2):
            await gateway.read(await gateway.open())
            gateway.now_s += 8
        gateway.silence()
        answer = await gateway.open()

        with pytest.raises(Overloaded, match="limit") as caught:
            await gateway.open()

        # 2 ends in 16 s.
        assert caught.value.retry_after_s == pytest.approx(8.0)
        answer.abandon()
