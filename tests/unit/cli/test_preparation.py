"""A model that cannot be served ends `up` before any process of the stack starts."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from millrace.cli.__main__ import run_verb
from millrace.cli.stack import preparation
from millrace.cli.stack.preparation import prepare_weights
from millrace.cli.up_config import UpConfig
from millrace.config.home import Home
from millrace.core.errors import UnsupportedModel
from millrace.engine.prepare import UNSERVABLE
from millrace.hub.entry import ModelEntry, entry_of_folder
from millrace.testing.servers import free_port
from tests.unit.hub.conftest import write_tiny_model


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("MILLRACE_HOME", str(tmp_path / "home"))
    return Home(tmp_path / "home")


@pytest.fixture
def entry(tmp_path: Path) -> ModelEntry:
    return entry_of_folder(write_tiny_model(tmp_path / "tiny"))


@pytest.fixture
def packer(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, bytes], None]:
    """Sets how the process that packs ends."""

    def set_end(status: int, said: bytes) -> None:
        def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[bytes]:
            return subprocess.CompletedProcess(command, status, None, said)

        monkeypatch.setattr(preparation, "lacks_weights", lambda settings: True)
        monkeypatch.setattr(subprocess, "run", run)

    return set_end


def classifier(folder: Path) -> None:
    path = folder / "config.json"
    names = {"architectures": ["LlamaForSequenceClassification"]}
    path.write_text(json.dumps(json.loads(path.read_text()) | names))


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize("break_it", [classifier, cut, no_tokenizer])
@pytest.mark.parametrize("detach", [[], ["--detach"]])
def test_up_ends_with_the_reason_before_anything_starts(
    home: Home,
    tmp_path: Path,
    break_it: Callable[[Path], None],
    detach: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def start(*args: object, **options: object) -> None:
        pytest.fail("something was started")

    for name in ("start_in_background", "stack_lock", "prepare_weights"):
        monkeypatch.setattr(f"millrace.cli.up.{name}", start)
    folder = write_tiny_model(tmp_path / "broken")
    break_it(folder)
    ports = ["--http-port", str(free_port()), "--grpc-port", str(free_port())]

    assert run_verb(["up", *ports, *detach, "--model", str(folder)]) == 1

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("millrace: broken cannot be served: ")
    assert not home.run.exists()


def test_weights_that_cannot_be_packed_for_the_models_sake_end_it(
    entry: ModelEntry, home: Home, packer: Callable[[int, bytes], None]
) -> None:
    packer(UNSERVABLE, b"tensor 'x' is odd\n")

    with pytest.raises(UnsupportedModel, match="tiny cannot be served: tensor 'x' is odd$"):
        prepare_weights(entry, UpConfig(), {}, home)


def test_a_packer_that_was_killed_ends_it(
    entry: ModelEntry, home: Home, packer: Callable[[int, bytes], None]
) -> None:
    packer(-signal.SIGKILL, b"")

    with pytest.raises(UnsupportedModel, match="ended with SIGKILL"):
        prepare_weights(entry, UpConfig(), {}, home)


def test_what_the_machine_fails_at_is_told_and_left_to_the_worker(
    entry: ModelEntry,
    home: Home,
    packer: Callable[[int, bytes], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    packer(1, b"cannot keep packed weights\n")

    prepare_weights(entry, UpConfig(), {}, home)

    assert capsys.readouterr().err == "cannot keep packed weights\n"
