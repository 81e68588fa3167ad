"""What the command shows fits 80 columns: texts wrap or are cut at the end, numbers never."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from millrace.cli.__main__ import run_verb
from millrace.cli.console import Console
from millrace.cli.load.outcome import Load, Outcome
from millrace.cli.load.report import show_load
from millrace.cli.load.slo import parse_slo
from millrace.cli.load.statistics import load_figures
from tests.unit.cli.terminal import Terminal


@pytest.fixture
def screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    return terminal


def wide_lines(screen: Terminal) -> list[str]:
    lines = screen.getvalue().splitlines()
    assert lines
    return [line for line in lines if len(line) > 80]


def test_config_show_wraps_its_texts(screen: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_GATEWAY_CORS_ORIGINS", ",".join(["https://app.example"] * 9))

    monkeypatch.setattr(sys, "stdout", screen)
    assert run_verb(["config", "show"]) == 0

    # A value without a blank is one word: it is not torn.
    assert [line for line in wide_lines(screen) if "https://app.example" not in line] == []
    assert "[gateway]" in screen.getvalue()


def test_figures_of_a_load_fit(screen: Terminal) -> None:
    broken = "unavailable: " + "the connection broke in the middle " * 9
    outcomes = [Outcome(0.0, 1e6, [5e5], 10**9, 10**9, model="m" * 60), Outcome(0, error=broken)]
    load = Load("grpc", 1, 1e6, 1.0, outcomes)
    slo = parse_slo("ttft=500,tpot=50,e2e=5000")

    show_load(Console(screen), load_figures(load, slo), slo)

    assert wide_lines(screen) == []
    assert "unavailable: the conn" in screen.getvalue()


@pytest.mark.parametrize(
    ("columns", "expected"), [("60", 60), ("0", 80), ("", 80), ("wide", 80), ("-5", 80)]
)
def test_the_width_is_what_columns_says_or_80(columns: str, expected: int) -> None:
    assert Console(Terminal(), environ={"COLUMNS": columns}).width == expected


def test_what_is_no_terminal_gets_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(environ={"COLUMNS": "40"})
    reason = "because " * 20

    console.table(["name", "reason"], [["a", reason]])
    console.prose(reason)

    assert console.width is None
    assert capsys.readouterr().out == f"name  reason\na     {reason.rstrip()}\n{reason}\n"


def test_a_terminal_without_letters_is_cut_with_dots() -> None:
    screen = Terminal()
    screen.encoding = "ascii"
    Console(screen, environ={"COLUMNS": "20", "NO_COLOR": "1"}).table(["a"], [["x" * 40]])

    assert screen.getvalue().splitlines()[1] == "x" * 17 + "..."
