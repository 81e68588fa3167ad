"""When a worker counts as frozen, by a clock of our own."""

from __future__ import annotations

import pytest

from millrace.scheduler.watchdog import CHECK_EVERY_S, StepWatchdog


class _Watched:
    """A watchdog, checked every quarter of a second."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.dog = StepWatchdog(clock_s=lambda: self.now_s)
        self.predicted_ms = 20.0

    def wait(self, seconds: float, *, counts: list[int] | None = None) -> str:
        """The first complaint; every half second the worker tells the next count."""
        for tick in range(round(seconds / CHECK_EVERY_S)):
            self.now_s += CHECK_EVERY_S
            if counts is not None and tick % 2:
                self.dog.progress_heard(counts.pop(0))
            if complaint := self.dog.complaint(self.predicted_ms):
                return complaint
        return ""


@pytest.fixture
def watched() -> _Watched:
    made = _Watched()
    made.dog.plan_sent()
    made.dog.result_heard(is_busy=False)
    return made


def test_silent_worker_with_a_plan_is_frozen_within_three_seconds(watched: _Watched) -> None:
    watched.dog.plan_sent()
    assert watched.wait(2.5) == ""
    assert watched.wait(0.25).startswith("no word for 2.8")


def test_slow_but_healthy_step_of_twenty_seconds_is_left_alone(watched: _Watched) -> None:
    watched.dog.plan_sent()
    assert watched.wait(20.0, counts=list(range(40))) == ""


def test_step_that_stands_still_is_frozen_though_the_worker_speaks(watched: _Watched) -> None:
    watched.dog.plan_sent()
    assert watched.wait(4.0, counts=[7] * 8).startswith("its step stands still")


def test_step_may_stand_still_for_eight_times_its_predicted_time(watched: _Watched) -> None:
    watched.predicted_ms = 1_000.0
    watched.dog.plan_sent()
    assert watched.wait(8.0, counts=[7] * 16) == ""
    assert watched.wait(1.0, counts=[7] * 2) != ""


def test_worker_without_a_plan_may_be_silent(watched: _Watched) -> None:
    assert watched.wait(60.0) == ""


def test_first_step_may_stand_still_ten_times_as_long() -> None:
    watched = _Watched()
    watched.dog.plan_sent()
    assert watched.wait(30.0, counts=[7] * 60) == ""
    assert watched.wait(2.0, counts=[7] * 4).startswith("its step stands still for 30.")


def test_worker_that_falls_silent_in_its_first_step_is_frozen() -> None:
    watched = _Watched()
    watched.dog.plan_sent()
    assert watched.wait(2.4) == ""
    assert watched.wait(0.4).startswith("no word for 2.")


def test_results_of_one_plan_after_the_other_keep_it_quiet(watched: _Watched) -> None:
    watched.dog.plan_sent()
    for _ in range(10):
        assert watched.wait(2.0) == ""
        watched.dog.result_heard(is_busy=True)


def test_plan_behind_another_does_not_start_the_clock_again(watched: _Watched) -> None:
    watched.dog.plan_sent()
    assert watched.wait(2.0) == ""
    watched.dog.plan_sent()
    assert watched.wait(2.0) != ""


def test_scheduler_that_was_held_up_itself_judges_nobody(watched: _Watched) -> None:
    watched.dog.plan_sent()
    watched.now_s += 30.0
    assert watched.dog.complaint(20.0) == ""
    assert watched.wait(3.5) != ""
