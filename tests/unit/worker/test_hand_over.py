"""The engine stands back for a first token until it is out, and for nothing else."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from millrace.core.step import RowToken, StepResult
from millrace.core.tokens import FinishReason
from millrace.worker import hand_over
from millrace.worker.hand_over import HandOver, ResultQueue

WAIT_S = 5.0


def _result(num_decode_rows: int) -> StepResult:
    token = RowToken(0, 7, 5, FinishReason.NONE, None)
    return StepResult(step_id=1, plan_id=1, tokens=[token], num_decode_rows=num_decode_rows)


@pytest.fixture
def queue() -> ResultQueue:
    return asyncio.Queue()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand_over, "GIVE_WAY_S", WAIT_S)


async def test_engine_waits_until_a_first_token_is_sent(queue: ResultQueue, patient: None) -> None:
    over = HandOver(queue)
    has_returned = threading.Event()

    def deliver() -> None:
        over.deliver(_result(num_decode_rows=0))
        has_returned.set()

    engine = asyncio.create_task(asyncio.to_thread(deliver))
    async with asyncio.timeout(WAIT_S):
        assert isinstance(await queue.get(), StepResult)
        assert not has_returned.is_set()
        over.sent()
        await engine
    assert has_returned.is_set()


async def test_engine_waits_no_longer_than_the_limit(
    queue: ResultQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hand_over, "GIVE_WAY_S", 0.02)
    over = HandOver(queue)
    began_s = time.monotonic()
    async with asyncio.timeout(WAIT_S):
        await asyncio.to_thread(over.deliver, _result(num_decode_rows=0))
    assert time.monotonic() - began_s >= 0.02
    assert queue.qsize() == 1


async def test_engine_goes_on_at_once_after_a_decode_step(
    queue: ResultQueue, patient: None
) -> None:
    over = HandOver(queue)
    # In the loop's own thread: one that waited would wait for itself.
    began_s = time.monotonic()
    over.deliver(_result(num_decode_rows=1))
    assert time.monotonic() - began_s < WAIT_S / 2
    async with asyncio.timeout(WAIT_S):
        assert isinstance(await queue.get(), StepResult)
