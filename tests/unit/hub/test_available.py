"""The list of models to begin with, and what is suggested for a name that nobody knows."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any

import pytest
from huggingface_hub.utils._validators import validate_repo_id

from millrace.cli import models
from millrace.cli.models import main
from millrace.config.home import Home
from millrace.core.errors import UnknownModel
from millrace.engine.routes import route_of
from millrace.hub.available import AVAILABLE, BY_KIND, BY_WEIGHTS
from millrace.hub.catalog import DEFAULT_ALIAS, resolve_model
from millrace.hub.pull import pull_model


@pytest.fixture(autouse=True)
def home_in_environment(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_HOME", str(home.root))


def test_a_dozen_models_are_listed_with_what_a_choice_needs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["available", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)

    assert len(rows) >= 12
    assert len({row["name"] for row in rows}) == len(rows)
    for row in rows:
        assert row["size_bytes"] > 10**7
        assert row["license"] and row["text"]
        assert row["tested"] in (BY_KIND, BY_WEIGHTS)
    assert main(["available"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : len(rows) + 1]] == [row["name"] for row in rows]


@pytest.mark.parametrize("model", AVAILABLE, ids=lambda model: model.name)
def test_the_route_that_is_listed_is_the_one_that_is_taken(model: Any) -> None:
    assert route_of({"model_type": model.model_type}) == (model.route, "")
    if model.name != DEFAULT_ALIAS:
        validate_repo_id(model.name)
        assert "/" in model.name


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("smolm2", "smollm2"),
        ("SMOLLM2", "smollm2"),
        ("smollm-2", "smollm2"),
        ("Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("qwen3-0.6b", "Qwen/Qwen3-0.6B"),
        ("gpt2", "openai-community/gpt2"),
        ("phi-3-mini-4k", "microsoft/Phi-3-mini-4k-instruct"),
    ],
)
def test_a_near_miss_is_told_what_may_be_meant(home: Home, asked: str, meant: str) -> None:
    with pytest.raises(UnknownModel, match=f"did you mean {meant}\\?"):
        pull_model(asked, home)
    with pytest.raises(UnknownModel, match=f"nearest known: (.*, )?{meant}"):
        resolve_model(asked, home)


def test_what_is_near_nothing_is_not_guessed(home: Home) -> None:
    with pytest.raises(UnknownModel) as caught:
        pull_model("zzzz", home)

    assert "did you mean" not in caught.value.message
    assert "models available" in caught.value.message


@pytest.mark.parametrize("asked", ["Qwen/Qwen3-0.6", "quen/Qwen3-0.6B"])
def test_a_repository_that_the_hub_does_not_have_may_be_another(
    fake_hub: Any, home: Home, asked: str
) -> None:
    with pytest.raises(UnknownModel, match="did you mean Qwen/Qwen3-0.6B\\?"):
        pull_model(asked, home)


def options() -> Iterator[tuple[str, argparse.Action]]:
    parser = argparse.ArgumentParser()
    models._add_verbs(parser)
    (verbs,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    for verb, sub in verbs.choices.items():
        for action in sub._actions:
            if not isinstance(action, argparse._HelpAction):
                yield verb, action


@pytest.mark.parametrize(
    ("verb", "action"), list(options()), ids=[f"{verb} {action.dest}" for verb, action in options()]
)
def test_every_option_says_what_it_is_and_what_holds_without_it(
    verb: str, action: argparse.Action
) -> None:
    assert action.help
    if action.nargs != 0 and not action.required:
        assert "default" in action.help
