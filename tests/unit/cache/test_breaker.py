"""The circuit breaker's states."""

from __future__ import annotations

from millrace.core.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def _open_breaker(clock: Clock) -> Breaker:
    breaker = Breaker(max_failures=3, open_s=2.0, clock=clock)
    for _ in range(3):
        assert breaker.try_enter()
        breaker.failed()
    return breaker


def test_failures_in_a_row_open_it() -> None:
    breaker = _open_breaker(Clock())
    assert breaker.is_open
    assert not breaker.try_enter()


def test_a_success_between_failures_keeps_it_closed() -> None:
    breaker = Breaker(max_failures=2, clock=Clock())
    for _ in range(5):
        breaker.failed()
        breaker.succeeded()
    assert breaker.try_enter()


def test_after_a_while_one_trial_is_let_through() -> None:
    clock = Clock()
    breaker = _open_breaker(clock)
    clock.now_s += 2.0
    assert breaker.try_enter()
    assert not breaker.try_enter()


def test_a_good_trial_closes_it() -> None:
    clock = Clock()
    breaker = _open_breaker(clock)
    clock.now_s += 2.0
    breaker.try_enter()
    breaker.succeeded()
    assert not breaker.is_open
    assert breaker.try_enter()


def test_a_bad_trial_opens_it_again() -> None:
    clock = Clock()
    breaker = _open_breaker(clock)
    clock.now_s += 2.0
    breaker.try_enter()
    breaker.failed()
    clock.now_s += 1.9
    assert not breaker.try_enter()
    clock.now_s += 0.1
    assert breaker.try_enter()


def test_a_trial_without_an_outcome_lets_the_next_one_in() -> None:
    clock = Clock()
    breaker = _open_breaker(clock)
    clock.now_s += 2.0
    breaker.try_enter()
    breaker.gave_up()
    assert breaker.try_enter()
