"""Attach streams: stale, double and missing tokens, reconnecting, resuming, changing owners."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from millrace.core.errors import Unavailable
from millrace.core.membership import ResumeQuery
from millrace.core.tokens import FinishReason
from millrace.gateway.events import Delta

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Harness

EOS = 256
EPOCH = 7


@pytest.fixture(autouse=True)
def quick_reconnects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millrace.gateway.scheduler_link.MIN_BACKOFF_S", 0.001)
    monkeypatch.setattr("millrace.gateway.scheduler_link.MAX_BACKOFF_S", 0.01)


def text_of(events: Any) -> Any:
    return "".join(event.text for event in events if isinstance(event, Delta))


def dropped(gateway: Harness) -> float | None:
    return gateway.registry.get_sample_value("millrace_stale_frames_dropped_total")


async def test_double_tokens_are_shown_once(gateway: Harness) -> None:
    gateway.silence()
    answer = await gateway.open()
    gateway.send([300], 0)
    gateway.send([300, 301], 0)
    gateway.send([301], 1)
    gateway.send([302, EOS], 2, FinishReason.STOP)

    assert text_of(await gateway.read(answer)) == "Hello, world"
    assert dropped(gateway) == 1


async def test_frame_of_an_older_attempt_is_dropped(gateway: Harness) -> None:
    gateway.silence()
    answer = await gateway.open()
    gateway.send([300], 0, attempt=EPOCH + 1)
    gateway.send([303], 1, attempt=EPOCH)
    gateway.send([302, EOS], 1, FinishReason.STOP, attempt=EPOCH + 1)

    assert text_of(await gateway.read(answer)) == "Helloworld"
    assert dropped(gateway) == 1


async def test_gap_is_never_shown_and_is_asked_for_once(gateway: Harness) -> None:
    gateway.silence()
    answer = await gateway.open()
    request_id = gateway.queued.request_id
    gateway.send([300], 0)
    gateway.send([302], 2)
    gateway.send([303], 3)
    await gateway.until(lambda: gateway.stream.told("resume") != [])

    gateway.send([301, 302, 303, EOS], 1, FinishReason.STOP)

    assert text_of(await gateway.read(answer)) == "Hello, world!"
    assert gateway.stream.told("resume") == [("resume", request_id, {0: [300]})]


async def test_broken_stream_is_opened_again_and_resumed(gateway: Harness) -> None:
    gateway.silence()
    answer = await gateway.open(sampling={"num_choices": 2})
    request_id = gateway.queued.request_id
    gateway.send([300, 301], 0, choice=0)
    await gateway.until(lambda: gateway.tokenizer.decode_calls != [])

    gateway.stream.break_off()
    await gateway.until(lambda: len(gateway.streams) == 2 and gateway.stream.sent != [])

    assert gateway.streams[0].is_closed
    assert gateway.stream.sent == [("resume", request_id, {0: [300, 301], 1: []})]
    gateway.send([300, 301, 302, EOS], 0, FinishReason.STOP, choice=0)
    gateway.send([EOS], 0, FinishReason.STOP, choice=1)
    assert text_of(await gateway.read(answer)) == "Hello, world"


async def test_stream_is_tried_again_until_the_scheduler_is_back(gateway: Harness) -> None:
    gateway.is_refusing_streams = True
    gateway.stream.break_off()
    await gateway.until(lambda: not gateway.directory.get("tiny").is_attached)
    with pytest.raises(Unavailable):
        await gateway.open()

    gateway.is_refusing_streams = False

    await gateway.until(lambda: gateway.directory.get("tiny").is_attached)
    assert text_of(await gateway.read(await gateway.open())) == "Hello, world!"


async def test_new_owner_is_followed(gateway: Harness) -> None:
    gateway.silence()
    answer = await gateway.open()

    await gateway.own(EPOCH + 1, "s:2")
    await gateway.until(lambda: len(gateway.streams) == 2 and gateway.stream.sent != [])

    assert gateway.stream.address == "s:2"
    gateway.send([303, EOS], 0, FinishReason.STOP, attempt=EPOCH + 1)
    assert text_of(await gateway.read(answer)) == "!"


async def test_older_owner_is_refused(gateway: Harness) -> None:
    from millrace.core.membership import SchedulerOwner

    gateway.router.on_owner(SchedulerOwner("old", EPOCH - 1, "s:9", "tiny"))

    assert text_of(await gateway.read(await gateway.open())) == "Hello, world!"
    assert [stream.address for stream in gateway.streams] == ["s:1"]


async def test_query_is_answered_with_cursors_or_gone(gateway: Harness) -> None:
    gateway.silence()
    answer = await gateway.open()
    request_id = gateway.queued.request_id
    gateway.send([300], 0)
    gateway.stream.push(ResumeQuery((request_id, "e" * 32)))

    await gateway.until(lambda: gateway.stream.told("gone") != [])

    assert gateway.stream.told("resume") == [("resume", request_id, {0: [300]})]
    assert gateway.stream.told("gone") == [("gone", "e" * 32)]
    answer.abandon()


async def test_terminal_delta_of_an_unknown_request_is_confirmed(gateway: Harness) -> None:
    gateway.send([1], 0, FinishReason.STOP, request_id="d" * 32)

    await gateway.until(lambda: gateway.stream.told("done") != [])
    assert gateway.stream.told("done") == [("done", "d" * 32)]


async def test_tokens_of_an_unknown_request_are_aborted_once(gateway: Harness) -> None:
    gateway.send([1], 0, request_id="d" * 32)
    gateway.send([1], 1, request_id="d" * 32)
    gateway.send([1], 0, FinishReason.STOP, request_id="c" * 32)

    await gateway.until(lambda: gateway.stream.told("done") != [])
    assert gateway.stream.told("abort") == [("abort", "d" * 32, "client")]


async def test_abort_while_the_stream_is_down_goes_over_the_bus(gateway: Harness) -> None:
    gateway.silence()
    answer = await gateway.open()
    gateway.is_refusing_streams = True
    gateway.stream.break_off()
    await gateway.until(lambda: not gateway.directory.get("tiny").is_attached)

    answer.abandon()

    await gateway.until(lambda: gateway.bus.aborted != [])
    assert gateway.bus.aborted == [gateway.queued.request_id]


async def test_silent_stream_is_given_up(gateway: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millrace.gateway.scheduler_link.SILENCE_LIMIT_S", 0.02)
    gateway.stream.break_off()

    await gateway.until(lambda: len(gateway.streams) >= 3)

    assert gateway.streams[1].is_closed
