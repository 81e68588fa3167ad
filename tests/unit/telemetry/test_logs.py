"""Log lines: one per record, with keys, without what users wrote."""

from __future__ import annotations

import io
import logging
import re
from typing import Any

import pytest

from millrace.core.errors import ConfigError, InvalidRequest
from millrace.telemetry.logs import LineFormatter, configure_logging
from millrace.testing.span_recorder import SpanRecorder

SECRET = "my secret prompt"


def _line(message: str = "hello", *, traceback: bool = False, **kwargs: Any) -> str:
    record = logging.getLogger("test").makeRecord(
        "test",
        logging.INFO,
        __file__,
        1,
        message,
        (),
        kwargs.get("exc_info"),
        extra=kwargs.get("extra"),
    )
    return LineFormatter("gateway", with_traceback=traceback).format(record)


def _raised(error: Exception) -> Any:
    try:
        raise error
    except Exception as caught:
        return type(caught), caught, caught.__traceback__


def test_line_has_time_level_service_message_and_keys() -> None:
    line = _line("attached", extra={"worker_id": "w1", "note": "two words"})

    assert re.fullmatch(
        r'\d\d:\d\d:\d\d\.\d{3} INFO    gateway attached worker_id=w1 note="two words"', line
    )


def test_line_names_the_trace_inside_a_span() -> None:
    with SpanRecorder().tracer("gateway").start_as_current_span("a") as span:
        line = _line()

    context = span.get_span_context()
    assert f"trace_id={context.trace_id:032x} span_id={context.span_id:016x}" in line


def test_newlines_cannot_forge_a_second_line() -> None:
    line = _line("one\ntwo\u2028three", extra={"key": "four\r\nfive"})

    assert len(line.splitlines()) == 1
    assert "one\\ntwo" in line


def test_foreign_exception_shows_type_and_place_but_not_its_message() -> None:
    line = _line(exc_info=_raised(ValueError(f"cannot parse {SECRET!r}")))

    assert SECRET not in line
    assert re.search(r'error="ValueError at unit/telemetry/test_logs.py:\d+"', line)
    assert len(line.splitlines()) == 1


def test_own_exception_shows_its_message() -> None:
    line = _line(exc_info=_raised(InvalidRequest("max_tokens is 0; it must be at least 1")))

    assert "max_tokens is 0" in line


def test_debug_shows_the_traceback_in_the_same_line() -> None:
    line = _line(traceback=True, exc_info=_raised(ValueError("x")))

    assert "traceback=" in line and "Traceback (most recent call last)" in line
    assert len(line.splitlines()) == 1


def test_configure_logging_twice_writes_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_LOG_LEVEL", "warning")
    root = logging.getLogger()
    before = list(root.handlers), root.level, logging.raiseExceptions
    stream = io.StringIO()
    try:
        configure_logging("gateway", stream=stream)
        configure_logging("gateway", stream=stream)
        logging.getLogger("millrace.x").warning("shown")
        logging.getLogger("millrace.x").info("hidden")
    finally:
        root.handlers[:], level, logging.raiseExceptions = before
        root.setLevel(level)

    assert stream.getvalue().count("shown") == 1
    assert "hidden" not in stream.getvalue()


def test_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_LOG_LEVEL", "loud")

    with pytest.raises(ConfigError, match="MILLRACE_LOG_LEVEL"):
        configure_logging("gateway")


def test_a_line_holds_no_password_of_a_url_wherever_it_came_from() -> None:
    url = "http://bob:hunter2@proxy:3128"
    line = _line(
        f"cannot reach {url}", traceback=True, exc_info=_raised(OSError(f"via {url}")), place=url
    )

    assert "hunter2" not in line
    assert line.count("***@proxy:3128") >= 3
