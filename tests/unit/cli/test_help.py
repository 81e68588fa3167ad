"""The help of every verb: each flag explained with its default, and examples that parse."""

from __future__ import annotations

import argparse
import importlib
import io
import shlex
from collections.abc import Iterator
from types import ModuleType

import pytest

from millrace.cli.__main__ import VERBS, verb_parser
from millrace.cli.examples import EXAMPLES
from millrace.cli.service_settings import find_settings, settings_names
from millrace.cli.stack.topology import load_topology
from millrace.cli.up_config import UpConfig
from millrace.config.loader import add_flags, declared_settings


def module_of(verb: str) -> ModuleType:
    return importlib.import_module(f"millrace.cli.{verb.replace('-', '_')}")


def parsers_of(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """It, and the parsers of its verbs, and so on."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers_of(below)


def shown_actions(verb: str) -> Iterator[tuple[str, argparse.Action]]:
    for parser in parsers_of(verb_parser(verb, module_of(verb))):
        for action in parser._actions:
            is_own = not isinstance(action, argparse._SubParsersAction | argparse._HelpAction)
            if is_own and action.help is not argparse.SUPPRESS:
                yield f"{parser.prog} {action.dest}", action


ACTIONS = [pair for verb in VERBS for pair in shown_actions(verb)]


@pytest.mark.parametrize("action", [action for _, action in ACTIONS], ids=[at for at, _ in ACTIONS])
def test_every_argument_has_a_text_and_says_its_default(action: argparse.Action) -> None:
    assert action.help
    is_switch = action.nargs == 0
    if not is_switch and not action.required:
        assert "default" in action.help.lower(), action.help
    numbers = [action.default] if isinstance(action.default, int | float) else []
    if not is_switch and any(numbers):
        assert f"{numbers[0]:g}" in action.help or "model's own" in action.help, action.help


def test_the_walk_sees_every_verb_and_those_below() -> None:
    progs = {at.rsplit(" ", 1)[0] for at, _ in ACTIONS}
    assert {"millrace models pull", "millrace config show", "millrace bench"} <= progs
    assert len(ACTIONS) > 80


@pytest.mark.parametrize("verb", VERBS)
def test_examples_stand_at_the_foot_and_parse(verb: str) -> None:
    parser = verb_parser(verb, module_of(verb))
    with pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patch:
        shown = io.StringIO()
        patch.setattr("sys.stdout", shown)
        patch.setenv("COLUMNS", "80")
        parser.parse_args([verb, "--help"])
    _, _, foot = shown.getvalue().rpartition("examples:\n")

    assert EXAMPLES[verb]
    for arguments, meaning in EXAMPLES[verb]:
        assert f" {verb} {arguments}".rstrip() + f"\n      {meaning}\n" in foot
        words = shlex.split(arguments.partition("<")[0])
        assert parser.parse_args([verb, *words]).verb == verb
    assert len(foot.splitlines()) == 2 * len(EXAMPLES[verb])


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_80_columns(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for parser in parsers_of(verb_parser(verb, module_of(verb))):
        shown = parser.format_help().partition("examples:")[0]
        assert [line for line in shown.splitlines() if len(line) > 80] == []


def test_up_tells_every_setting_with_what_holds_without_it() -> None:
    parser = verb_parser("up", module_of("up"))
    shown = [below.format_help() for below in parsers_of(parser)][-1]
    lines = shown.splitlines()

    for item in declared_settings(UpConfig, "up"):
        flag = item.flag if not isinstance(item.value, bool) else f"--[no-]{item.flag[2:]}"
        (line,) = (line for line in lines if line.split()[:1] == [flag])
        default = line.split(maxsplit=1)[1]
        assert default != "none", line
        if item.doc.inherits:
            table, _, name = item.doc.inherits.partition(".")
            below = declared_settings(find_settings(load_topology(), table), table)
            value = next(each.text for each in below if each.name == name)
            assert default == f"{value} ({item.doc.inherits})"
        assert item.env in shown


@pytest.mark.parametrize("table", settings_names(load_topology()))
def test_no_setting_of_any_service_defaults_to_a_bare_none(table: str) -> None:
    parser = argparse.ArgumentParser()
    cls = find_settings(load_topology(), table)
    add_flags(parser, cls, table)

    lines = (parser.epilog or "").splitlines()
    bare = {line.split()[0] for line in lines if line.startswith("  --") and line.endswith(" none")}
    assert bare == {item.flag for item in declared_settings(cls, table) if item.value == "none"}
    assert max(map(len, lines)) < 80
