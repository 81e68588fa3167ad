"""The model that `up` serves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from millrace.cli.stack import model_choice
from millrace.cli.stack.model_choice import find_or_pull, require_fit, served_model
from millrace.cli.up_config import UpConfig
from millrace.config.home import Home
from millrace.core.errors import ConfigError, UnknownModel, UnsupportedModel
from millrace.hub.entry import ModelEntry

ENTRY = ModelEntry(
    name="tiny",
    aliases=("t",),
    path=Path("/models/tiny"),
    revision="0",
    license="apache-2.0",
    size_bytes=1,
    architecture="LlamaForCausalLM",
    route="native",
    refusal="",
    max_model_len=128,
)


def test_a_missing_model_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pulled = []

    def pull(model: str, home: Home, *, approve: Any, stream: Any) -> ModelEntry:
        pulled.append(model)
        return ENTRY

    monkeypatch.setattr("millrace.hub.pull.pull_model", pull)

    assert find_or_pull("org/tiny", Home(tmp_path)) is ENTRY
    assert pulled == ["org/tiny"]


def test_a_missing_folder_is_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="does not exist"):
        find_or_pull(str(tmp_path / "none"), Home(tmp_path))


def test_a_refused_model_is_told_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = replace(ENTRY, route="refused", refusal="it has no attention")
    monkeypatch.setattr(model_choice, "resolve_model", lambda model, home: refused)

    with pytest.raises(UnsupportedModel, match="tiny cannot be served: it has no attention"):
        find_or_pull("tiny", Home(tmp_path))


def test_services_get_a_folder_by_path_and_a_known_model_by_name() -> None:
    assert served_model("t", ENTRY).reference == "tiny"
    assert served_model("/models/tiny", ENTRY).reference == "/models/tiny"
    assert served_model("/models/tiny", ENTRY).name == "tiny"


@pytest.mark.parametrize(("backend", "has_kernels"), [("auto", None), ("torch", False)])
def test_the_fit_check_asks_for_what_the_worker_is_set_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, backend: str, has_kernels: bool | None
) -> None:
    asked: list[dict[str, Any]] = []

    class Report:
        def require(self) -> None:
            raise ConfigError("does not fit")

    def check(entry: ModelEntry, **settings: Any) -> Report:
        asked.append(settings)
        return Report()

    monkeypatch.setattr("millrace.hub.fit.check_fit", check)
    environ = {
        "MILLRACE_HOME": str(tmp_path),
        "MILLRACE_WORKER_MAX_NUM_SEQS": "5",
        "MILLRACE_WORKER_BACKEND": backend,
    }

    with pytest.raises(ConfigError, match="does not fit"):
        require_fit(ENTRY, UpConfig(workers=2, dtype="float32", quantization="int8"), environ)

    assert asked == [
        {
            "dtype": "float32",
            "max_num_seqs": 5,
            "max_model_len": 0,
            "num_workers": 2,
            "quantization": "int8",
            "has_kernels": has_kernels,
        }
    ]
