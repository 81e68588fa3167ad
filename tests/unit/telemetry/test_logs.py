"""Log lines: one per record, with keys, without what users wrote."""

from __future__ import annotations

import io
import json
import logging
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from millrace.core.errors import ConfigError, InvalidRequest
from millrace.telemetry.log_line import FORMATS, iso_time, make_line, stamped, time_of
from millrace.telemetry.logs import OUR_LOGGERS, LineFormatter, configure_logging
from millrace.testing.span_recorder import SpanRecorder

SECRET = "my secret prompt"


@pytest.fixture
def clean_logging() -> Iterator[None]:
    """Leaves the logging of the test run as it was."""
    root = logging.getLogger()
    handlers, raises = list(root.handlers), logging.raiseExceptions
    levels = {name: logging.getLogger(name).level for name in ("", *OUR_LOGGERS)}
    yield
    root.handlers[:], logging.raiseExceptions = handlers, raises
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def _line(
    message: str = "hello", *, traceback: bool = False, style: str = "text", **kwargs: Any
) -> str:
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
    formatter = LineFormatter("gateway", style=style, with_traceback=traceback)
    return formatter.format(record)


def _raised(error: Exception) -> Any:
    try:
        raise error
    except Exception as caught:
        return type(caught), caught, caught.__traceback__


def test_line_has_time_level_service_message_and_keys() -> None:
    line = _line("attached", extra={"worker_id": "w1", "note": "two words"})

    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d "
        r'INFO    gateway attached worker_id=w1 note="two words"',
        line,
    )


def test_json_line_has_the_same_as_fields() -> None:
    extra = {"worker_id": "w1", "tokens": 7, "note": 'two "words"'}

    document = json.loads(_line("attached", extra=extra, style="json"))

    assert time_of(_line("attached", style="json")) == pytest.approx(time.time(), abs=5)
    assert document.pop("time")[10] == "T"
    assert document == {"level": "INFO", "service": "gateway", "message": "attached", **extra}


@pytest.mark.parametrize("message", ["one\ntwo", "\u2028\u2029\x85", "\ud800 half", '"}{"', "\x00"])
def test_json_line_is_one_line_of_ascii_whatever_it_says(message: str) -> None:
    line = _line(message, extra={"key": message}, style="json")

    assert line.isascii() and line.isprintable()
    assert (json.loads(line)["message"], json.loads(line)["key"]) == (message, message)


def test_json_error_is_a_field_and_keeps_what_must_not_be_said() -> None:
    line = _line(exc_info=_raised(ValueError(f"cannot parse {SECRET!r}")), style="json")

    assert SECRET not in line
    assert json.loads(line)["error"].startswith("ValueError at unit/telemetry/test_logs.py:")


@pytest.mark.parametrize("style", FORMATS)
def test_time_of_a_line_comes_back(style: str) -> None:
    line = make_line(style, 1_700_000_000.25, "INFO", "worker", "x", {})

    assert time_of(line) == 1_700_000_000.25
    assert stamped("worker", line) == line


@pytest.mark.parametrize("line", ["[2879] 2026/11/28 22:29:19 [INF] nats", "", "  File x", "{}"])
def test_line_without_a_time_gets_one(line: str) -> None:
    assert time_of(line) is None
    assert time_of(stamped("nats", line)) == pytest.approx(time.time(), abs=5)
    assert line in stamped("nats", line)


def test_seconds_that_change_change_the_clock() -> None:
    shown = [iso_time(at_s)[17:23] for at_s in (1.999, 2.0, 2.001, 59.9995, 1.5)]

    assert shown == ["01.999", "02.000", "02.001", "59.999", "01.500"]


def test_unknown_format_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_LOG_FORMAT", "xml")

    with pytest.raises(ConfigError, match="MILLRACE_LOG_FORMAT is 'xml'; it must be one of text"):
        configure_logging("gateway")


@pytest.mark.parametrize("name", ["grpc._cython.cygrpc", "asyncio", "httpx", "nats", "uvicorn"])
def test_debug_level_is_for_our_lines_alone(
    name: str, monkeypatch: pytest.MonkeyPatch, clean_logging: None
) -> None:
    monkeypatch.setenv("MILLRACE_LOG_LEVEL", "debug")
    stream = io.StringIO()
    configure_logging("gateway", stream=stream)

    logging.getLogger(name).debug("theirs")
    logging.getLogger(name).info("theirs")
    logging.getLogger(name).warning("trouble")
    logging.getLogger("millrace.x").debug("ours")
    logging.getLogger("__main__").debug("and ours")

    assert [line.split(" gateway ")[1] for line in stream.getvalue().splitlines()] == [
        *("trouble", "ours", "and ours")
    ]


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


def test_configure_logging_twice_writes_one_line(
    monkeypatch: pytest.MonkeyPatch, clean_logging: None
) -> None:
    monkeypatch.setenv("MILLRACE_LOG_LEVEL", "warning")
    stream = io.StringIO()
    configure_logging("gateway", stream=stream)
    configure_logging("gateway", stream=stream)
    logging.getLogger("millrace.x").warning("shown")
    logging.getLogger("millrace.x").info("hidden")

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
