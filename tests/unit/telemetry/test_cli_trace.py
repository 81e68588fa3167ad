"""`millrace trace` and `millrace trace-ui` as a user meets them."""

from __future__ import annotations

import argparse
import io
import json
import time
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

from millrace.cli import trace as trace_command
from millrace.cli import trace_ui
from millrace.core.errors import ConfigError, MillraceError, RequestNotFound
from millrace.telemetry.trace_writer import TraceWriter
from millrace.testing.sample_trace import SampleTimings, sample_steps, sample_trace


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path))
    monkeypatch.setattr(trace_command, "SETTLE_S", 0.0)
    monkeypatch.setattr(trace_command, "APPEAR_S", 0.0)
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
