"""`millrace trace` and `millrace trace-ui` as a user meets them."""

from __future__ import annotations

import argparse
import io
import json
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from millrace.cli import trace as trace_command
from millrace.cli import trace_ui
from millrace.cli.last_request import note_request
from millrace.cli.stack.run_file import ProcessRecord, new_stack_record
from millrace.config.home import Home
from millrace.core.errors import ConfigError, MillraceError, RequestNotFound
from millrace.telemetry.trace_writer import TraceWriter
from millrace.testing.sample_trace import SampleTimings, sample_steps, sample_trace


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path))
    monkeypatch.setattr(trace_command, "SETTLE_S", 0.0)
    monkeypatch.setattr(trace_command, "APPEAR_S", 0.0)
    monkeypatch.setattr(trace_command, "EXPORT_S", 0.0)
    return tmp_path


@pytest.fixture
def stored(home: Path) -> Path:
    with closing(TraceWriter(home / "run" / "spans.db")) as writer:
        for number, decode_s in ((0xA001, 0.2), (0xA002, 0.9), (0xA003, 0.4)):
            spans = sample_trace(SampleTimings(decode_s=decode_s), number=number)
            writer.add([*spans, *sample_steps(spans, number=number)])
    return home


def _run(command: ModuleType, *arguments: str) -> int:
    parser = argparse.ArgumentParser(prog="millrace")
    command.add_parser(parser.add_subparsers())
    return int(command.run(parser.parse_args(list(arguments))))


def test_last_is_drawn_with_its_cause(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(trace_command, "trace") == 0

    shown = capsys.readouterr().out
    assert "request 0000a003" in shown
    assert "most of the time: worker: 40 decode steps of 10.0 ms each" in shown
    assert shown.isascii()


def test_prefix_chooses_a_request(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(trace_command, "trace", "0000a001")

    assert "request 0000a001" in capsys.readouterr().out


def _request_id(number: int) -> str:
    return f"{number:08x}{'ab' * 12}"


def test_last_is_the_request_that_was_just_made_from_here(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note_request(Home(stored), _request_id(0xA001))

    _run(trace_command, "trace", "--last")

    assert "request 0000a001" in capsys.readouterr().out


@pytest.mark.parametrize("age_s", [3.0, 3600.0])
def test_older_request_from_here_is_no_longer_meant(
    stored: Path, capsys: pytest.CaptureFixture[str], age_s: float
) -> None:
    note = {"request_id": _request_id(0xA001), "ended_unix_s": time.time() - age_s}
    (stored / "run" / "last-request.json").write_text(json.dumps(note))

    _run(trace_command, "trace", "--last")

    assert "request 0000a003" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "[]", '{"request_id": 1}', "not json"])
def test_note_that_makes_no_sense_is_ignored(
    stored: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    (stored / "run" / "last-request.json").write_text(content)

    _run(trace_command, "trace", "--last")

    assert "request 0000a003" in capsys.readouterr().out


def test_last_waits_for_a_root_that_is_on_its_way(
    stored: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_command, "APPEAR_S", 5.0)
    note_request(Home(stored), _request_id(0xA009))

    def arrive(seconds: float) -> None:
        with closing(TraceWriter(stored / "run" / "spans.db")) as writer:
            writer.add(sample_trace(number=0xA009))

    monkeypatch.setattr(time, "sleep", arrive)

    _run(trace_command, "trace", "--last")

    assert "request 0000a009" in capsys.readouterr().out


def test_last_of_a_running_stack_waits_for_the_next_spans_and_leaves_later_requests_out(
    stored: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_command, "EXPORT_S", 5.0)
    record = new_stack_record("tiny", {})
    record.processes = [ProcessRecord("collector")]
    monkeypatch.setattr(trace_command, "running_stack", lambda home: record)

    def arrive(seconds: float) -> None:
        late_ns = time.time_ns() + 10**9
        with closing(TraceWriter(stored / "run" / "spans.db")) as writer:
            writer.add(sample_trace(number=0xA008))
            writer.add(sample_trace(number=0xA009, start_ns=late_ns))

    monkeypatch.setattr(time, "sleep", arrive)

    _run(trace_command, "trace")

    assert "request 0000a008" in capsys.readouterr().out


def test_json_says_ok_where_the_text_does(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(trace_command, "trace", "0000a001", "--json")

    assert json.loads(capsys.readouterr().out)["status"] == "OK"


def test_refused_request_is_shown_with_its_error(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attributes = {"millrace.request_id": "d" * 32, "millrace.error.reason": "INVALID_REQUEST"}
    root = replace(
        sample_trace(number=0xA00B)[0],
        name="POST /v1/chat/completions",
        status="ERROR",
        status_message="temperature is 9",
        attributes=attributes,
    )
    with closing(TraceWriter(stored / "run" / "spans.db")) as writer:
        writer.add([root])

    _run(trace_command, "trace", "d" * 8)

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("refused")
    assert lines[-1] == "refused: INVALID_REQUEST: temperature is 9 (client error)"


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("arguments", [["--last"], ["--slowest", "3"]])
def test_no_line_is_longer_than_the_terminal(
    stored: Path, monkeypatch: pytest.MonkeyPatch, width: int, arguments: list[str]
) -> None:
    with closing(TraceWriter(stored / "run" / "spans.db")) as writer:
        timings = SampleTimings(preempted_s=1.0)
        writer.add(sample_trace(timings, number=0xA00C, model="a-very-long-model-name" * 2))
    screen = FakeTerminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", str(width))

    _run(trace_command, "trace", *arguments)

    lines = screen.getvalue().splitlines()
    assert len(lines) > 3
    assert max(map(len, lines)) <= width


def test_slowest_lists_slowest_first(stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(trace_command, "trace", "--slowest", "2")

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "0000a002abab" in lines[0] and "worker: 40 decode steps" in lines[0]
    assert "0000a003abab" in lines[1]


def test_json_holds_spans_steps_and_diagnosis(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(trace_command, "trace", "0000a002", "--json")

    document = json.loads(capsys.readouterr().out)
    assert document["diagnosis"]["cause"] == "worker"
    assert len(document["spans"]) == len(sample_trace())
    assert len(document["steps"]) == 4


def test_unknown_request_is_an_error(stored: Path) -> None:
    with pytest.raises(RequestNotFound, match="abcdef12"):
        _run(trace_command, "trace", "abcdef12")


def test_without_a_store_it_says_what_makes_one(home: Path) -> None:
    with pytest.raises(MillraceError, match="millrace up"):
        _run(trace_command, "trace")


def test_follow_prints_what_comes_and_ends_on_interrupt(
    stored: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_command, "SETTLE_S", -1.0)
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            raise KeyboardInterrupt
        with closing(TraceWriter(stored / "run" / "spans.db")) as writer:
            writer.add(sample_trace(number=0xA009))

    monkeypatch.setattr(time, "sleep", nap)

    assert _run(trace_command, "trace", "--follow") == 0

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and "0000a009abab" in lines[0]


class FakeTerminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("lang", "is_unicode"), [("en_US.UTF-8", True), ("C.UTF-8", True), ("C", False), ("", False)]
)
def test_blocks_need_a_terminal_that_speaks_utf8(
    monkeypatch: pytest.MonkeyPatch, lang: str, is_unicode: bool
) -> None:
    for name in ("LC_ALL", "LC_CTYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", lang)

    assert trace_command.terminal(FakeTerminal())[1] is is_unicode
    assert trace_command.terminal(io.StringIO()) == (trace_command.PLAIN_WIDTH, False)


def test_trace_ui_does_not_install_without_a_yes(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))

    with pytest.raises(ConfigError, match="--yes"):
        _run(trace_ui, "trace-ui")

    shown = capsys.readouterr().out
    assert "Elastic License 2.0" in shown and "850 MB" in shown
    assert not (home / "trace-ui" / "venv").exists()


def test_trace_ui_is_told_to_stay_on_loopback_and_silent(tmp_path: Path) -> None:
    environ = trace_ui.phoenix_environment(tmp_path, 6006)

    assert environ["PHOENIX_HOST"] == "127.0.0.1"
    assert environ["PHOENIX_TELEMETRY_ENABLED"] == "false"
    assert environ["PHOENIX_ALLOW_EXTERNAL_RESOURCES"] == "false"
    assert environ["PHOENIX_WORKING_DIR"] == str(tmp_path)


@pytest.mark.parametrize("content", [None, "not json", '{"pid": 1}', '{"port": 6006}'])
def test_stop_ends_nobody_else(
    home: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    if content is not None:
        (home / "trace-ui").mkdir()
        (home / "trace-ui" / "run.json").write_text(content)

    assert _run(trace_ui, "trace-ui", "--stop") == 0
    assert capsys.readouterr().out == "no tracing UI runs\n"
