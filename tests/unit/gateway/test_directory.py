"""Models come, go and come back."""

from __future__ import annotations

import dataclasses

import pytest

from millrace.core.errors import Unavailable, UnknownModel
from millrace.core.membership import SchedulerStatus, WorkerRegistration
from millrace.core.model import ModelInfo
from millrace.gateway.directory import ModelDirectory

INFO = ModelInfo(
    name="m", revision="r", dtype="float32", max_model_len=8, vocab_size=9, aliases=("alias",)
)


def worker(info: ModelInfo = INFO) -> WorkerRegistration:
    return WorkerRegistration("w", "b", "x:1", info, 1, 1, 1)


def status(info: ModelInfo = INFO, num_workers: int = 1) -> SchedulerStatus:
    return SchedulerStatus(info, num_workers, 0, 0, 0, 0, 1)


def test_model_is_found_by_name_alias_and_default() -> None:
    directory = ModelDirectory()
    directory.on_worker("w", worker())

    assert directory.find("m") is directory.find("alias") is directory.find("")


def test_default_model_comes_first() -> None:
    directory = ModelDirectory("z")
    for name in ("b", "z", "a"):
        directory.on_worker(name, worker(dataclasses.replace(INFO, name=name, aliases=())))

    assert [model.info.name for model in directory.list()] == ["z", "a", "b"]
    assert directory.find("").name == "z"


def test_unknown_model_names_what_there_is() -> None:
    directory = ModelDirectory()
    directory.on_worker("w", worker())

    with pytest.raises(UnknownModel, match="'x'.* m"):
        directory.find("x")


def test_nothing_registered_yet_is_unavailable() -> None:
    with pytest.raises(Unavailable):
        ModelDirectory().find("")


def test_model_whose_worker_left_is_unavailable_not_unknown() -> None:
    directory = ModelDirectory()
    directory.on_worker("w", worker())
    directory.on_status(status())
    directory.require_served(INFO)

    directory.on_worker("w", None)
    directory.on_status(status(num_workers=0))

    assert directory.find("m") == INFO
    with pytest.raises(Unavailable, match="worker"):
        directory.require_served(INFO)


def test_detached_scheduler_is_unavailable() -> None:
    directory = ModelDirectory()
    directory.on_worker("w", worker())
    directory.on_status(status())

    directory.on_detached("m")

    with pytest.raises(Unavailable, match="scheduler"):
        directory.require_served(INFO)


def test_status_without_facts_does_not_overwrite_them() -> None:
    directory = ModelDirectory()
    directory.on_worker("w", worker())

    bare = ModelInfo(name="m", revision="", dtype="", max_model_len=0, vocab_size=0)
    directory.on_status(status(bare, 0))

    assert directory.find("m") == INFO
    assert directory.get("m").is_attached


def test_status_of_a_model_without_facts_makes_no_entry() -> None:
    directory = ModelDirectory()

    bare = ModelInfo(name="m", revision="", dtype="", max_model_len=0, vocab_size=0)
    directory.on_status(status(bare, 0))

    assert not directory.list()


def test_a_name_is_unknown_only_once_there_is_something_to_compare_it_with() -> None:
    directory = ModelDirectory("default")

    with pytest.raises(Unavailable):
        directory.find("other")
    directory.on_worker("w", worker())
    with pytest.raises(UnknownModel):
        directory.find("other")
    with pytest.raises(Unavailable):
        directory.find("default")
