"""A message's way through the scheduler: admitted, resumed, refused, settled once."""

from __future__ import annotations

import asyncio

import pytest

from millrace.core.errors import ConfigError, Unavailable
from millrace.core.request import Priority
from millrace.core.tokens import FinishReason
from millrace.scheduler import intake
from millrace.testing.model_worker import expected_output
from tests.unit.scheduler_service.desk import MODEL, Desk, Held, queued_request, until


def _settled(held: Held) -> list[str]:
    return [settlement for settlement in held.settlements if settlement != "in_progress"]


def _tokens(desk: Desk, request_id: str = "r", choice: int = 0) -> list[int]:
    entry = desk.ledger.get(request_id)
    assert entry is not None
    return entry.outputs[choice].token_ids


async def test_first_delivery_is_admitted_at_once(desk: Desk) -> None:
    ear = desk.attach()
    request = queued_request()
    await desk.deliver_and_wait(request)
    assert desk.num_work_calls == 1
    desk.run()
    await until(lambda: len(ear.frames()) == 4)
    assert not ear.queries()
    tokens = [token for frame in ear.frames() for d in frame.deltas for token in d.token_ids]
    assert (tokens, ear.frames()[-1].deltas[0].finish) == expected_output(request)
    assert {frame.attempt for frame in ear.frames()} == {7}


async def test_confirmed_request_is_acknowledged_once(desk: Desk) -> None:
    desk.attach()
    held = await desk.deliver_and_wait(queued_request())
    desk.run()
    assert not _settled(held)
    for _ in range(2):
        desk.intake.confirmed("r")
    desk.intake.aborted("r")
    await until(lambda: bool(_settled(held)))
    assert _settled(held) == ["acknowledge"]
    assert not len(desk.ledger)


async def test_confirmation_of_one_choice_only_ends_the_request(desk: Desk) -> None:
    held = await desk.deliver_and_wait(queued_request(num_choices=2))
    desk.step()
    desk.intake.confirmed("r")
    await until(lambda: _settled(held) == ["acknowledge"])
    assert desk.scheduler.stats().num_requests == 0


async def test_second_delivery_asks_the_gateway_and_goes_on_from_its_tokens(desk: Desk) -> None:
    ear = desk.attach()
    request = queued_request(max_tokens=6)
    output, _ = expected_output(request)
    await desk.deliver_and_wait(request, num_delivered=2)
    await until(lambda: bool(ear.queries()))
    assert ear.queries()[0].request_ids == ("r",)
    assert desk.scheduler.stats().num_requests == 0
    desk.intake.resumed("r", {0: output[:2]})
    desk.run()
    await until(lambda: len(ear.frames()) == 4)
    assert ear.frames()[0].deltas[0].start_index == 2
    assert _tokens(desk) == output


async def test_resume_of_a_request_that_was_complete_ends_it(desk: Desk) -> None:
    ear = desk.attach()
    request = queued_request()
    output, _ = expected_output(request)
    await desk.deliver_and_wait(request, num_delivered=2)
    desk.intake.resumed("r", {0: output})
    await until(lambda: bool(ear.frames()))
    (delta,) = ear.frames()[0].deltas
    assert (delta.start_index, delta.token_ids) == (4, [])
    assert delta.finish is FinishReason.LENGTH


async def test_second_delivery_that_nobody_wants_is_acknowledged(desk: Desk) -> None:
    held = await desk.deliver_and_wait(queued_request(), num_delivered=2)
    desk.intake.aborted("r")
    await until(lambda: _settled(held) == ["acknowledge"])
    desk.intake.resumed("r", {})
    assert desk.scheduler.stats().num_requests == 0


async def test_request_that_its_gateway_does_not_name_waits_for_the_answer(desk: Desk) -> None:
    ear = desk.attach()
    unwanted = await desk.deliver_and_wait(queued_request("a"), is_wanted=False)
    await desk.deliver_and_wait(queued_request("b"), is_wanted=False)
    await until(lambda: [id for query in ear.queries() for id in query.request_ids] == ["a", "b"])
    assert desk.scheduler.stats().num_requests == 0
    desk.intake.aborted("a")
    desk.register("b")
    assert desk.scheduler.stats().num_requests == 1
    await until(lambda: _settled(unwanted) == ["acknowledge"])
    desk.run()
    assert len(_tokens(desk, "b")) == 4


async def test_new_stream_of_a_gateway_is_asked_once_what_became_of_its_requests(
    desk: Desk,
) -> None:
    held = await desk.deliver_and_wait(queued_request("over"))
    await desk.deliver_and_wait(queued_request("live"))
    desk.run()
    ear = desk.attach()
    desk.register("live")
    await until(lambda: bool(ear.queries()))
    num_calls = desk.num_work_calls
    await until(lambda: desk.num_work_calls > num_calls + 3)
    assert [query.request_ids for query in ear.queries()] == [("over",)]
    desk.intake.aborted("over")
    await until(lambda: _settled(held) == ["acknowledge"])


async def test_gateway_that_attaches_late_is_asked_then(desk: Desk) -> None:
    await desk.deliver_and_wait(queued_request("a"), num_delivered=2)
    await desk.deliver_and_wait(queued_request("b", gateway_id="other"), num_delivered=2)
    ear = desk.attach()
    await until(lambda: bool(ear.queries()))
    assert [query.request_ids for query in ear.queries()] == [("a",)]


async def test_delivery_of_a_held_request_replaces_its_handle(desk: Desk) -> None:
    ear = desk.attach()
    first = await desk.deliver_and_wait(queued_request())
    second = await desk.deliver_and_wait(queued_request(), num_delivered=2)
    desk.run()
    desk.intake.confirmed("r")
    await until(lambda: _settled(second) == ["acknowledge"])
    assert not _settled(first)
    assert not ear.queries()


async def test_unreadable_message_is_discarded_and_the_next_one_taken(desk: Desk) -> None:
    held = desk.deliver(None)
    await desk.deliver_and_wait(queued_request())
    assert _settled(held) == ["discard"]
    assert desk.bus.dead_letters == [held.dead_letter]


async def test_full_window_gives_back_and_pauses_the_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intake, "RETRY_S", 3600.0)
    desk = Desk(max_num_waiting=1)
    desk.start()
    await desk.deliver_and_wait(queued_request("a"))
    second = desk.deliver(queued_request("b"))
    await until(lambda: _settled(second) == ["give_back"])
    queue = desk.bus.queues[Priority.NORMAL]
    num_fetches = queue.num_fetches
    third = desk.deliver(queued_request("c"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert (queue.num_fetches, _settled(third)) == (num_fetches, [])
    assert "b" not in desk.ledger
    await desk.stop()


async def test_no_more_is_fetched_than_may_be_held(desk: Desk) -> None:
    for number in range(4):
        await desk.deliver_and_wait(queued_request(str(number)))
    fifth = desk.deliver(queued_request("4"))
    for _ in range(20):
        await asyncio.sleep(0)
    # One fetch may have been under way when the fourth came.
    sixth = desk.deliver(queued_request("5"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert "5" not in desk.ledger
    for number in range(2):
        desk.intake.aborted(str(number))
    await until(lambda: "4" in desk.ledger or "5" in desk.ledger)
    assert not _settled(fifth) and not _settled(sixth)


async def test_bad_request_ends_with_a_frame(desk: Desk) -> None:
    ear = desk.attach()
    held = await desk.deliver_and_wait(queued_request(prompt=tuple(range(300))))
    await until(lambda: bool(ear.frames()))
    (failed,) = ear.frames()[0].failed
    assert failed.reason == "CONTEXT_LENGTH_EXCEEDED"
    desk.intake.confirmed("r")
    await until(lambda: _settled(held) == ["acknowledge"])


async def test_abort_by_id_ends_a_running_request_with_a_frame(desk: Desk) -> None:
    ear = desk.attach()
    await desk.deliver_and_wait(queued_request())
    desk.step()
    await desk.bus.publish_abort("unknown")
    await desk.bus.publish_abort("r")
    await until(lambda: any(frame.failed for frame in ear.frames()))
    assert ear.frames()[-1].failed[0].reason == "ABORTED"
    assert desk.scheduler.stats().num_requests == 0


async def test_abort_by_id_ends_a_request_that_awaits_its_gateway(desk: Desk) -> None:
    held = await desk.deliver_and_wait(queued_request(), num_delivered=2)
    await until(lambda: bool(desk.bus._aborts))
    await desk.bus.publish_abort("r")
    await until(lambda: all(entry.is_terminal for entry in desk.ledger))
    ear = desk.attach()
    desk.intake.resumed("r", {})
    await until(lambda: bool(ear.frames()))
    assert ear.frames()[0].failed[0].reason == "ABORTED"
    assert desk.scheduler.stats().num_requests == 0
    desk.intake.confirmed("r")
    await until(lambda: _settled(held) == ["acknowledge"])


async def test_deadline_ends_a_request_with_a_frame(desk: Desk) -> None:
    ear = desk.attach()
    await desk.deliver_and_wait(queued_request(deadline_unix_ms=1))
    await until(lambda: bool(ear.frames()))
    assert ear.frames()[0].failed[0].reason == "DEADLINE_EXCEEDED"


async def test_time_alone_has_the_workers_asked_again(desk: Desk) -> None:
    num_calls = desk.num_work_calls
    await until(lambda: desk.num_work_calls >= num_calls + 2)


async def test_requests_of_an_absent_gateway_end_after_the_grace(desk: Desk) -> None:
    desk.attach("other")
    await desk.deliver_and_wait(queued_request("kept", gateway_id="other"))
    running = await desk.deliver_and_wait(queued_request("a"))
    awaiting = await desk.deliver_and_wait(queued_request("b"), num_delivered=2)
    desk.links.detach(desk.links._links["gateway"])
    desk.intake._drop_absent_gateways()
    desk.clock_s = 59.0
    desk.intake._drop_absent_gateways()
    assert len(desk.ledger) == 3
    desk.clock_s = 61.0
    await until(lambda: len(desk.ledger) == 1)
    await until(lambda: _settled(running) == _settled(awaiting) == ["acknowledge"])
    assert "kept" in desk.ledger
    assert desk.scheduler.stats().num_requests == 1


async def test_held_messages_are_kept_from_others(desk: Desk) -> None:
    held = await desk.deliver_and_wait(queued_request())
    await until(lambda: held.settlements.count("in_progress") >= 2)


async def test_everything_is_given_back_at_the_end(desk: Desk) -> None:
    running = await desk.deliver_and_wait(queued_request("a"))
    awaiting = await desk.deliver_and_wait(queued_request("b"), num_delivered=2)
    await desk.stop()
    await desk.intake.give_back_all()
    assert _settled(running) == _settled(awaiting) == ["give_back"]


async def test_failed_settlement_is_logged_and_nothing_more(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Held):
        async def acknowledge(self) -> None:
            raise Unavailable("no bus")

    desk.bus.queues[Priority.NORMAL].deliveries.put_nowait(Broken(queued_request()))
    await until(lambda: "r" in desk.ledger)
    desk.intake.aborted("r")
    await until(lambda: "will be delivered again: no bus" in caplog.text)


async def test_missing_consumer_ends_the_intake(desk: Desk) -> None:
    class Bare(type(desk.bus)):  # type: ignore[misc]
        async def work_queue(self, model: str, priority: Priority) -> None:
            raise ConfigError("no consumer")

    desk.intake._bus = Bare()
    with pytest.raises(ConfigError):
        await desk.intake.run(MODEL)
