from __future__ import annotations

from itertools import islice

import pytest

from millrace.core.request import Priority
from millrace.scheduler.fairness import MAX_IDLE_ACCOUNTS, TenantLedger
from millrace.scheduler.policy import SchedulerPolicy
from millrace.scheduler.sequence import LiveRequest, Sequence
from millrace.scheduler.waiting import WaitingQueue


class Line:
    """A waiting queue with what it needs around it."""

    def __init__(self, make_request, **policy):
        self._make_request = make_request
        self.policy = SchedulerPolicy(**policy)
        self.queue = WaitingQueue(self.policy)
        self.ledger = TenantLedger(self.policy.tenant_weights)
        self._num = 0

    def push(self, name, *, prompt_len=4, choice=0, **fields):
        self._num += 1
        request = self._make_request(name, [1] * prompt_len, **fields)
        live = LiveRequest(
            request, (request.arrival_unix_ns, self._num), self.ledger.open(request.tenant)
        )
        rank = (request.priority, *live.order, choice)
        sequence = Sequence(live, choice, list(request.prompt_token_ids), prompt_len, rank)
        live.sequences.append(sequence)
        self.queue.push(sequence)
        return sequence

    def take(self, count=1, *, now_ns=0, credit=lambda sequence: 0):
        names = []
        for _ in range(count):
            sequence = next(self.queue.in_order(now_ns, credit))
            self.queue.take(sequence, now_ns)
            sequence.request.account.charge_input(sequence.num_tokens)
            names.append(sequence.request_id)
        return names


@pytest.fixture
def line(make_request):
    return lambda **policy: Line(make_request, **policy)


def test_first_come_is_first_served(line):
    waiting = line()
    for name, arrival in (("b", 2), ("a", 1), ("c", 3)):
        waiting.push(name, arrival=arrival)

    assert waiting.take(3) == ["a", "b", "c"]


def test_a_sequence_that_comes_back_takes_its_old_place(line):
    waiting = line()
    old = waiting.push("old", arrival=1)
    waiting.take()
    waiting.push("new", arrival=2)

    waiting.queue.push(old)

    assert waiting.take(2) == ["old", "new"]


def test_higher_classes_go_first(line):
    waiting = line()
    for priority in (Priority.LOW, Priority.NORMAL, Priority.HIGH):
        waiting.push(priority.name, priority=priority)

    assert waiting.take(3) == ["HIGH", "NORMAL", "LOW"]


def test_every_kth_admission_goes_to_the_oldest_of_the_lower_classes(line):
    waiting = line(ageing_share=3)
    for i in range(8):
        waiting.push(f"high{i}", priority=Priority.HIGH, arrival=100 + i)
    waiting.push("normal", priority=Priority.NORMAL, arrival=50)
    waiting.push("low", priority=Priority.LOW, arrival=7)

    assert waiting.take(6) == ["high0", "high1", "low", "high2", "high3", "normal"]


def test_a_blocked_lower_class_gives_its_turn_back(line):
    waiting = line(ageing_share=1)
    waiting.push("low0", priority=Priority.LOW)
    waiting.push("low1", priority=Priority.LOW)
    waiting.push("high", priority=Priority.HIGH)

    seen = [s.request_id for s in waiting.queue.in_order(0, lambda s: 0)]

    assert seen == ["low0", "high", "low1"]


def test_tenants_take_turns_by_tokens(line):
    waiting = line()
    for i in range(4):
        waiting.push(f"big{i}", tenant="big", prompt_len=40, arrival=i)
    for i in range(6):
        waiting.push(f"small{i}", tenant="small", prompt_len=10, arrival=10 + i)

    assert waiting.take(6) == ["big0", "small0", "small1", "small2", "small3", "big1"]


def test_a_tenant_of_double_weight_gets_double_service(line):
    waiting = line(tenant_weights={"gold": 2.0})
    for i in range(12):
        waiting.push(f"gold{i}", tenant="gold", arrival=i)
        waiting.push(f"tin{i}", tenant="tin", arrival=i)

    taken = waiting.take(9)

    assert sum(name.startswith("gold") for name in taken) == 6


def test_a_tenant_that_was_idle_has_no_credit(line):
    waiting = line()
    for i in range(10):
        waiting.push(f"old{i}", tenant="old", arrival=i)
    waiting.take(4)
    for i in range(6):
        waiting.push(f"new{i}", tenant="new", arrival=20 + i)

    taken = waiting.take(6)

    assert sum(name.startswith("new") for name in taken) == 3


def test_accounts_of_idle_tenants_are_bounded():
    ledger = TenantLedger({})
    for i in range(3 * MAX_IDLE_ACCOUNTS):
        ledger.close(ledger.open(f"tenant{i}"))

    assert len(ledger._accounts) <= MAX_IDLE_ACCOUNTS + 1


def test_a_cached_prompt_overtakes_a_bounded_number_of_times(line):
    waiting = line(max_bypasses=2)
    waiting.push("cold", arrival=1)
    for i in range(4):
        waiting.push(f"warm{i}", arrival=2 + i)

    taken = waiting.take(5, credit=lambda s: 4 * s.request_id.startswith("warm"))

    assert taken == ["warm0", "warm1", "cold", "warm2", "warm3"]


def test_a_cached_prompt_overtakes_for_a_bounded_time(line):
    waiting = line(max_bypass_ms=500.0)
    waiting.push("cold", arrival=1)
    for i in range(4):
        waiting.push(f"warm{i}", arrival=2 + i)

    def credit(sequence):
        return 4 * sequence.request_id.startswith("warm")

    assert waiting.take(2, now_ns=1_000_000, credit=credit) == ["warm0", "warm1"]
    assert waiting.take(1, now_ns=502_000_000, credit=credit) == ["cold"]


def test_only_the_window_is_searched_for_cached_prompts(line):
    waiting = line(bypass_window=3)
    for i in range(5):
        waiting.push(str(i), arrival=i)
    asked = []

    def credit(sequence):
        asked.append(sequence.request_id)
        return 0

    next(waiting.queue.in_order(0, credit))

    assert set(asked) <= {"0", "1", "2"}


def test_each_candidate_is_named_once(line):
    waiting = line()
    for i in range(5):
        waiting.push(str(i), tenant=str(i % 2), arrival=i)

    seen = [s.request_id for s in islice(waiting.queue.in_order(0, lambda s: 0), 10)]

    assert sorted(seen) == ["0", "1", "2", "3", "4"]


def test_counts_follow_pushes_takes_and_discards(line):
    waiting = line()
    first = waiting.push("a", prompt_len=3, arrival=1)
    waiting.push("b", prompt_len=5, arrival=2)

    waiting.queue.discard(first)
    assert (len(waiting.queue), waiting.queue.num_tokens) == (1, 5)

    waiting.take()
    assert (len(waiting.queue), waiting.queue.num_tokens) == (0, 0)
    assert not waiting.queue
