"""`millrace models` as typed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from millrace.cli.models import main
from millrace.config.home import Home


@pytest.fixture(autouse=True)
def home_in_environment(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_HOME", str(home.root))


def test_add_list_and_remove(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["add", str(tiny_model), "--name", "small", "--alias", "s"]) == 0
    assert main(["list"]) == 0
    assert main(["remove", "s", "--yes"]) == 0
    assert main(["list"]) == 0

    output = capsys.readouterr().out
    assert "small" in output
    assert "native" in output
    assert "no models yet" in output


def test_list_as_json(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["add", str(tiny_model)])
    capsys.readouterr()

    main(["list", "--json"])

    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["route"], row["max_model_len"]) == ("tiny", "native", 128)


def test_list_shows_a_broken_entry_as_refused(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["add", str(tiny_model)])
    tiny_model.rename(tiny_model.with_name("moved"))
    capsys.readouterr()

    main(["list", "--json"])

    (row,) = json.loads(capsys.readouterr().out)
    assert row["route"] == "refused"
    assert "is gone" in row["refusal"]


def test_remove_asks_first(tiny_model: Path, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    main(["add", str(tiny_model)])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda prompt: "n")

    assert main(["remove", "tiny"]) == 1
    assert (home.models / "tiny").is_dir()

    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    assert main(["remove", "tiny"]) == 0
    assert not (home.models / "tiny").exists()


def test_remove_without_a_terminal_needs_yes(
    tiny_model: Path, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["add", str(tiny_model)])

    assert main(["remove", "tiny"]) == 1
    assert "--yes" in capsys.readouterr().err
    assert (home.models / "tiny").is_dir()


def test_fit_refuses_with_the_nearest_setting(
    make_model: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_model("long", max_position_embeddings=10_000_000)

    status = main(["fit", str(folder), "--memory", "500MB"])

    output = capsys.readouterr().out
    assert status == 1
    assert "fits with sequences of up to" in output


def test_fit_as_json(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(tiny_model), "--memory", "1GB", "--json"]) == 0

    report = json.loads(capsys.readouterr().out)
    assert report["memory_bytes"] == 10**9
    assert [row["dtype"] for row in report["dtypes"]] == ["float32", "bfloat16", "int8", "int4"]


def test_errors_become_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "nothing-here"]) == 1
    assert capsys.readouterr().err.startswith("error: model 'nothing-here' is not on this machine")


@pytest.mark.parametrize("name", ["plain", "two words", "it's", "a;b", "$HOME"])
def test_a_hint_with_a_path_can_be_pasted_into_a_shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "m.gguf").write_bytes(b"")

    assert main(["pull", str(folder)]) == 1
    of_pull = capsys.readouterr().err
    assert main(["add", str(folder), "--name", "x"]) == 1
    of_add = capsys.readouterr().err

    typed = [shlex.split(said.rpartition(": ")[2])[1:] for said in (of_pull, of_add)]
    assert typed == [
        ["models", "add", str(folder)],
        ["models", "add", str(folder / "m.gguf")],
    ]
