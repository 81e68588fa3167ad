"""Tables of models fit 80 columns."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from millrace.cli.models import main
from millrace.config.home import Home
from tests.unit.cli.terminal import Terminal

GENERATION = '{"temperature": 0.2, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1}'


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("verb", [["list"], ["fit", "s"], ["fit", "s", "--memory", "1MB"]])
def test_a_table_of_models_fits(
    tiny_model: Path,
    home: Home,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: list[str],
    is_whole: bool,
) -> None:
    (tiny_model / "generation_config.json").write_text(GENERATION, encoding="utf-8")
    monkeypatch.setenv("MILLRACE_HOME", str(home.root))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    name = "a-model-with-a-name-that-people-do-give-to-their-files"
    assert main(["add", str(tiny_model), "--name", name, "--alias", "s"]) == 0
    if not is_whole:
        tiny_model.rename(tiny_model.with_name("moved"))
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)

    main(verb)

    lines = screen.getvalue().splitlines()
    assert [line for line in lines if len(line) > 80] == []
    assert lines or not is_whole
