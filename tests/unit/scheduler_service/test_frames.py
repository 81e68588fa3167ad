"""Frames for each gateway, and what the ledger keeps for those that come back."""

from __future__ import annotations

import pytest

from millrace.core.errors import InternalError
from millrace.core.tokens import (
    FinishReason,
    Scheduled,
    TokenDelta,
    TokenFrame,
    TokenLogprobs,
)
from millrace.scheduler.frames import FrameSender
from millrace.scheduler.gateway_links import GatewayLinks, LinkEvent
from millrace.scheduler.ledger import Ledger, LedgerEntry
from millrace.scheduler.outcome import StepOutcome
from millrace.scheduler.request_spans import RequestSpans
from tests.unit.scheduler_service.desk import Held, queued_request


class _Links(GatewayLinks):
    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, TokenFrame]] = []

    def send(self, gateway_id: str, event: LinkEvent) -> bool:
        assert isinstance(event, TokenFrame)
        self.sent.append((gateway_id, event))
        return True


@pytest.fixture
def links() -> _Links:
    return _Links()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def frames(ledger: Ledger, links: _Links) -> FrameSender:
    sender = FrameSender(ledger, links)
    sender.owner_epoch = 9
    return sender


def _entry(ledger: Ledger, request_id: str = "r", gateway_id: str = "gateway") -> LedgerEntry:
    request = queued_request(request_id, gateway_id=gateway_id, num_choices=2)
    spans = RequestSpans.begin(request, 9, num_delivered=1, published_unix_ns=1)
    entry = LedgerEntry(Held(request), request, spans)
    ledger.add(entry)
    return entry


def _delta(
    request_id: str, start: int, tokens: list[int], finish: FinishReason = FinishReason.NONE
) -> TokenDelta:
    logprobs = [TokenLogprobs(-float(token)) for token in tokens]
    return TokenDelta(request_id, 0, start, tokens, finish, logprobs)


def test_each_gateway_gets_one_frame_with_all_it_needs(
    ledger: Ledger, links: _Links, frames: FrameSender
) -> None:
    for request_id, gateway_id in (("a", "x"), ("b", "x"), ("c", "y")):
        _entry(ledger, request_id, gateway_id)
    outcome = StepOutcome(
        deltas=[_delta(request_id, 0, [5]) for request_id in ("a", "c", "not held")],
        scheduled=[Scheduled("a", 1, 0)],
        failed=[("b", InternalError("broken"))],
    )
    frames.send_outcome(outcome)
    assert [gateway_id for gateway_id, _ in links.sent] == ["x", "y"]
    (_, of_x), (_, of_y) = links.sent
    assert of_x.attempt == 9
    assert [delta.request_id for delta in of_x.deltas] == ["a"]
    assert [failed.message for failed in of_x.failed] == ["broken"]
    assert [delta.request_id for delta in of_y.deltas] == ["c"]


def test_nothing_to_tell_sends_nothing(links: _Links, frames: FrameSender) -> None:
    frames.send_outcome(StepOutcome())
    assert not links.sent


def test_resend_begins_at_the_cursors(ledger: Ledger, links: _Links, frames: FrameSender) -> None:
    entry = _entry(ledger)
    scheduled = Scheduled("r", 5, 16)
    frames.send_outcome(StepOutcome(scheduled=[scheduled], deltas=[_delta("r", 0, [1])]))
    frames.send_outcome(StepOutcome(deltas=[_delta("r", 1, [2])]))
    frames.send_outcome(StepOutcome(deltas=[_delta("r", 2, [3], FinishReason.STOP)]))
    links.sent.clear()
    frames.resend(entry, {0: [1]})
    ((_, frame),) = links.sent
    assert frame.scheduled == [scheduled]
    assert frame.deltas == [_delta("r", 1, [2, 3], FinishReason.STOP)]


def test_resend_to_a_gateway_that_has_all_but_the_finish_tells_the_finish(
    ledger: Ledger, links: _Links, frames: FrameSender
) -> None:
    entry = _entry(ledger)
    frames.send_outcome(StepOutcome(deltas=[_delta("r", 0, [1], FinishReason.LENGTH)]))
    links.sent.clear()
    frames.resend(entry, {0: [1]})
    assert links.sent[0][1].deltas == [_delta("r", 1, [], FinishReason.LENGTH)]


def test_resend_to_a_gateway_that_has_everything_sends_nothing(
    ledger: Ledger, links: _Links, frames: FrameSender
) -> None:
    entry = _entry(ledger)
    frames.send_outcome(StepOutcome(deltas=[_delta("r", 0, [1])]))
    links.sent.clear()
    frames.resend(entry, {0: [1]})
    assert not links.sent


def test_resend_tells_a_failure(ledger: Ledger, links: _Links, frames: FrameSender) -> None:
    entry = _entry(ledger)
    frames.fail(entry, InternalError("broken"))
    frames.resend(entry, {})
    first, again = (frame.failed for _, frame in links.sent)
    assert first == again
    assert first[0].reason == "INTERNAL"


def test_logprobs_of_resent_tokens_are_theirs_after_a_change_of_owner(
    ledger: Ledger, links: _Links, frames: FrameSender
) -> None:
    entry = _entry(ledger)
    entry.resume({0: [1, 2, 3]})
    frames.send_outcome(StepOutcome(deltas=[_delta("r", 3, [4, 5, 6])]))
    links.sent.clear()
    frames.resend(entry, {0: [1, 2, 3, 4]})
    assert links.sent[0][1].deltas == [_delta("r", 4, [5, 6])]


def test_entry_stays_when_its_last_frame_is_sent(ledger: Ledger, frames: FrameSender) -> None:
    entry = _entry(ledger)
    done = StepOutcome(deltas=[_delta("r", 0, [1], FinishReason.STOP)], finished=["r"])
    frames.send_outcome(done)
    assert entry.is_terminal
    assert "r" in ledger
    assert ledger.pop("r") is entry
    assert ledger.pop("r") is None


def test_ledger_finds_requests_by_gateway(ledger: Ledger) -> None:
    for request_id, gateway_id in (("a", "x"), ("b", "x"), ("c", "y")):
        _entry(ledger, request_id, gateway_id)
    assert ledger.gateway_ids() == {"x", "y"}
    assert [entry.request.request_id for entry in ledger.of_gateway("x")] == ["a", "b"]
