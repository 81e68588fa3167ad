"""Settings as documents, and `millrace config`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from millrace.cli.__main__ import run_verb
from millrace.cli.service_settings import explain_service, find_settings, settings_names
from millrace.cli.settings_document import markdown_document, toml_document
from millrace.cli.stack.run_file import new_stack_record, write_run_file
from millrace.cli.stack.settings_file import write_settings_file
from millrace.cli.stack.topology import load_topology
from millrace.config.home import Home
from millrace.config.loader import declared_settings

ROOT = Path(__file__).parents[3]
TOPOLOGY = load_topology()
# Their defaults mean "none given"; the file shows a value that they may have.
EXAMPLES = "model dtype quantization host http_port grpc_port nats_url redis_url store forward_url"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path))
    return Home(tmp_path)


def test_the_page_of_settings_is_current() -> None:
    written = (ROOT / "docs" / "settings.md").read_text("utf-8")

    assert written == markdown_document(TOPOLOGY), "run: python scripts/settings_page.py"


def test_the_page_names_every_setting_and_nothing_of_this_machine() -> None:
    page = markdown_document(TOPOLOGY)

    for name in settings_names(TOPOLOGY):
        for item in declared_settings(find_settings(TOPOLOGY, name), name):
            assert f"| `{item.name}` |" in page
    assert str(Path.home()) not in page


def test_the_settings_file_changes_nothing_until_something_is_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(toml_document(TOPOLOGY), "utf-8")
    environ = {"MILLRACE_CONFIG": str(path), "MILLRACE_HOME": "/nowhere"}

    for name in settings_names(TOPOLOGY):
        assert {item.origin for item in explain_service(TOPOLOGY, name, environ).values()} == {
            "default"
        }


def test_every_line_of_the_settings_file_can_be_taken_in_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(re.sub(r"^#(?=\w)", "", toml_document(TOPOLOGY), flags=re.MULTILINE), "utf-8")
    environ = {"MILLRACE_CONFIG": str(path), "MILLRACE_HOME": "/nowhere"}

    for name in settings_names(TOPOLOGY):
        defaults = {
            item.name: item.value for item in declared_settings(find_settings(TOPOLOGY, name), name)
        }
        for item in explain_service(TOPOLOGY, name, environ).values():
            assert item.origin == "file", item
            is_example = defaults[item.name] is None and item.name in EXAMPLES.split()
            assert is_example or item.value == defaults[item.name], item


def test_init_writes_the_file_for_its_owner_alone_and_replaces_none(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_verb(["config", "init"]) == 0
    assert home.config_file.stat().st_mode & 0o777 == 0o600
    assert home.config_file.read_text("utf-8") == toml_document(TOPOLOGY)
    home.config_file.write_text("[up]\nworkers = 2\n")

    assert run_verb(["config", "init"]) == 1
    assert "--force" in capsys.readouterr().err
    assert "workers = 2" in home.config_file.read_text("utf-8")
    assert run_verb(["config", "init", "--force"]) == 0


def shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    assert run_verb(["config", "show", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def by_name(settings: list[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {item["name"]: item for item in settings}


def test_what_holds_instead_of_an_unset_setting_is_shown(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_GATEWAY_HTTP_PORT", "8081")

    up = by_name(shown(["up"], capsys)["up"])
    worker = by_name(shown(["worker"], capsys)["worker"])

    assert (up["http_port"]["value"], up["http_port"]["effective"]) == (None, 8081)
    assert up["http_port"]["inherits"] == "gateway.http_port"
    assert worker["num_blocks"]["unset"] == "sized by memory"
    assert run_verb(["config", "show"]) == 0
    text = capsys.readouterr().out
    assert "8081 (gateway.http_port)" in text
    assert re.search(r"num_blocks +sized by memory +\[default\]\n +blocks of the KV cache", text)


def test_another_file_can_be_shown(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.toml"
    path.write_text("[gateway]\nhttp_port = 1\n")

    settings = by_name(shown(["gateway", "--config", str(path)], capsys)["gateway"])

    assert (settings["http_port"]["value"], settings["http_port"]["origin"]) == (1, "file")


def test_the_settings_of_the_running_stack_are_those_it_was_started_with(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_verb(["config", "show", "--running"]) == 1
    assert "no stack is running" in capsys.readouterr().err
    home.run.mkdir()
    write_run_file(home, new_stack_record("m", {}))
    write_settings_file(home, {"worker-2": [{"name": "port", "value": 7}]})
    monkeypatch.setenv("MILLRACE_WORKER_PORT", "8")

    assert shown(["--running"], capsys) == {"worker-2": [{"name": "port", "value": 7}]}
    assert run_verb(["config", "show", "worker", "--running"]) == 1
    assert "did you mean worker-2?" in capsys.readouterr().err
    modes = {path.name: path.stat().st_mode & 0o777 for path in home.run.iterdir()}
    assert modes == {"stack.json": 0o600, "settings.json": 0o600}


def test_passwords_are_shown_in_no_way(
    home: Home, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLRACE_CACHE_REDIS_URL", "redis://bob:hunter2@h:1/0")

    settings = by_name(shown(["cache"], capsys)["cache"])
    assert settings["redis_url"]["value"] == "redis://bob:***@h:1/0"
    assert run_verb(["config", "show"]) == 0
    assert "hunter2" not in capsys.readouterr().out


def test_every_setting_says_what_it_is() -> None:
    for name in settings_names(TOPOLOGY):
        for item in declared_settings(find_settings(TOPOLOGY, name), name):
            assert asdict(item.doc)["help"], item.name
            if item.doc.inherits:
                table, _, other = item.doc.inherits.partition(".")
                assert other in find_settings(TOPOLOGY, table).__dataclass_fields__
