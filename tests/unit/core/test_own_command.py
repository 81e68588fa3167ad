"""The command of a hint can be typed where the hint is printed."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace.cli.__main__ import VERBS
from millrace.core.own_command import own_command

ROOT = Path(__file__).parents[3]
SOURCES = [
    path
    for root in (ROOT / "libs", ROOT / "services")
    for path in sorted(root.rglob("*.py"))
    # What tests are told is for their author; stubs are made.
    if "testing" not in path.parts and "_pb2" not in path.name
]
LITERAL_HINT = re.compile(rf"\bmillrace (?:{'|'.join(VERBS)}|--\w|\{{)")
BUS_LOST = "no stream takes requests in: the NATS server has lost its data; run `millrace bus init`"
# Usage, versions and the names of log lines are no hints; the manual is read anywhere.
# What the bus says reaches clients of the API, who are to learn no path of this machine.
NOT_PRINTED_AS_HINTS = {
    ("bus/verify.py", "run `millrace bus init`"),
    ("bus/nats_queue.py", "no consumer { for model {; run `millrace bus init --model {`"),
    ("bus/nats_errors.py", BUS_LOST),
    ("cli/models.py", "millrace models"),
    ("cli/up.py", "millrace up [--detach] [--setting value ...]"),
    ("cli/settings_document.py", "# Settings"),
    ("cli/crash.py", "{ millrace {"),
    ("hub/servable.py", "millrace {, {"),
    ("cli/version.py", "millrace { (Python {)"),
    ("rpc/run.py", "millrace {: {"),
}


def make_script(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "millrace"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    return script


@pytest.mark.parametrize(
    ("script", "here", "path", "expected"),
    [
        ("venv/bin", ".", "venv/bin", "millrace"),
        ("venv/bin", ".", "", "venv/bin/millrace"),
        ("venv/bin", ".", "other/bin", "venv/bin/millrace"),
        (".venv/bin", ".", "", ".venv/bin/millrace"),
        ("venv/bin", "venv/bin", "", "./millrace"),
        ("venv/bin", "elsewhere", "", "{root}/venv/bin/millrace"),
        ("my venv/bin", ".", "", "'my venv/bin/millrace'"),
    ],
)
def test_the_command_is_what_a_shell_finds_or_the_path_of_the_script(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    here: str,
    path: str,
    expected: str,
) -> None:
    started = make_script(tmp_path / script)
    make_script(tmp_path / "other/bin")
    (tmp_path / here).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / here)
    monkeypatch.setenv("PATH", str(tmp_path / path) if path else "/nowhere")
    monkeypatch.setattr(sys, "argv", [str(started), "status"])

    shown = own_command("up --detach")

    assert shown == f"{expected.format(root=tmp_path)} up --detach"
    environ = {**os.environ, "PATH": os.pathsep.join((os.environ["PATH"], os.defpath))}
    done = subprocess.run(["/bin/sh", "-c", shown], env=environ, check=False)
    assert done.returncode == 0


def test_a_script_on_the_path_under_a_link_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = make_script(tmp_path / "venv/bin")
    links = tmp_path / "links"
    links.mkdir()
    (links / "millrace").symlink_to(script)
    monkeypatch.setenv("PATH", str(links))
    monkeypatch.setattr(sys, "argv", [str(script)])

    assert own_command("status") == "millrace status"


@pytest.mark.parametrize("has_script", [True, False])
def test_a_service_names_the_script_beside_its_interpreter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_script: bool
) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    monkeypatch.setattr(sys, "argv", ["/lib/millrace/scheduler/__main__.py"])
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    if has_script:
        make_script(python.parent)

    expected = "bin/millrace up" if has_script else "bin/python -m millrace.cli up"
    assert own_command("up") == expected


def test_a_working_directory_that_is_gone_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(sys, "argv", [str(make_script(tmp_path / "bin"))])

    assert shlex.split(own_command("up"))[1:] == ["up"]


def literal_hints(tree: ast.AST) -> Iterator[str]:
    """Texts of a module that name a command, without docstrings; `{` is what is put in."""
    prose = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if node.body and isinstance(node.body[0], ast.Expr)
    }
    prose |= {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{" for part in node.values]
            text = "".join(str(part) for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = "" if id(node) in prose else node.value
        else:
            continue
        if LITERAL_HINT.search(text):
            yield text


def test_the_search_finds_hints() -> None:
    code = '''
"""Docstring: run `millrace up`."""
a = "start it with `millrace up`"
b = f"see millrace {verb} logs"
c = f"{x}: millrace models pull {y}"
d = "millrace worker: lost"
'''
    assert len(list(literal_hints(ast.parse(code)))) == 3


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_hint_names_a_command_that_may_not_be_found(path: Path) -> None:
    name = "/".join(path.parts[-2:])
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {(name, text.split("\n")[0]) for text in literal_hints(tree)}
    assert found <= NOT_PRINTED_AS_HINTS
