"""Generation without services, up to the engine."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from millrace.cli import local_generation
from millrace.cli.client import SamplingOptions
from millrace.core.errors import UnsupportedModel
from millrace.engine import engine


@pytest.mark.parametrize(("given", "expected"), [(None, "passive"), ("active", "active")])
def test_openmp_threads_park_between_regions_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    entry = SimpleNamespace(path=None, name="tiny", revision="r")
    seen: list[str | None] = []

    def create_engine(config: Any) -> None:
        seen.append(os.environ.get("OMP_WAIT_POLICY"))
        raise UnsupportedModel("no engine here")

    monkeypatch.setattr(local_generation, "find_or_pull", lambda model, home: entry)
    monkeypatch.setattr(engine, "create_engine", create_engine)

    with pytest.raises(UnsupportedModel):
        local_generation.generate_locally("hi", "", "auto", SamplingOptions(), lambda text: None)

    assert seen == [expected]
