"""The x-ratelimit headers: what they say is what the gateway holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from millrace.gateway.drain_rate import Load
from millrace.gateway.http.rate_limit import duration_text, rate_limit_headers
from millrace.gateway.pipeline import PipelineLimits

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

CHAT = "/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def limits() -> PipelineLimits:
    return PipelineLimits(max_in_flight=2)


async def test_whole_reply_says_that_all_is_left_again(gateway: Harness) -> None:
    async with gateway.client() as client:
        reply = await client.post(CHAT, json=HI)
    assert reply.status_code == 200
    assert reply.headers["x-ratelimit-limit-requests"] == "2"
    assert reply.headers["x-ratelimit-remaining-requests"] == "2"
    assert reply.headers["x-ratelimit-reset-requests"] == "0s"


async def test_refused_request_learns_that_nothing_is_left_and_when_that_ends(
    gateway: Harness,
) -> None:
    for _ in range(2):
        await gateway.read(await gateway.open())
        gateway.now_s += 8
    gateway.silence()
    running = [await gateway.open() for _ in range(2)]
    async with gateway.client() as client:
        refused = await client.post(CHAT, json=HI)
    assert refused.status_code == 429
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    # Two are held, and two ended in 16 s.
    assert refused.headers["x-ratelimit-reset-requests"] == "16s"
    for answer in running:
        answer.abandon()


async def test_routes_that_generate_nothing_have_no_limits(gateway: Harness) -> None:
    async with gateway.client() as client:
        for path in ("/health", "/v1/models"):
            reply = await client.get(path)
            assert not any(name.startswith("x-ratelimit") for name in reply.headers)


def test_reset_is_when_all_that_is_held_has_ended_and_left_out_where_unknown() -> None:
    assert dict(rate_limit_headers(Load(10, 6, 0.5)))["x-ratelimit-reset-requests"] == "12s"
    unknown = dict(rate_limit_headers(Load(10, 6, 0.0)))
    assert unknown == {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "4",
    }


def test_more_than_the_limit_leaves_nothing() -> None:
    assert Load(2, 3, 1.0).num_left == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0s"), (0.0001, "1ms"), (0.35, "350ms"), (12.4, "12s"), (125.0, "2m5s")],
)
def test_durations_are_written_as_that_api_writes_them(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
