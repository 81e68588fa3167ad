"""A GGUF file that is not imported leaves nothing behind."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest

from millrace.config.home import Home
from millrace.core.errors import UnsupportedModel
from millrace.hub import gguf_import
from millrace.hub.add import add_model
from tests.unit.hub.gguf_document import (
    tiny_document,
)


@pytest.mark.parametrize("number", range(4))
def test_refused_file_leaves_nothing_behind(tmp_path: Path, number: int) -> None:
    document = tiny_document()
    tensor = document.tensors[number * 5]
    content = document.content()
    if number == 0:
        content = content[:-200]
    elif number == 1:
        content = b"GGUF" + bytes(30)
    elif number == 2:
        tensor.name = "another"
        content = document.content()
    else:
        tensor.data = struct.pack("<f", float("nan")) + tensor.data[4:]
        content = document.content()
    path, home = tmp_path / "strange.gguf", Home(tmp_path / "home")
    path.write_bytes(content)

    with pytest.raises(UnsupportedModel, match="strange.gguf: "):
        add_model(path, home)

    assert not [
        file for file in home.models.rglob("*") if file.is_file() and file.suffix != ".lock"
    ]


@pytest.mark.parametrize("place", ["tokenizer_json", "write_weights", "say"])
def test_interrupted_import_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    calls = []

    def interrupt(*args: object, **more: object) -> None:
        calls.append(args)
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf_import, place, interrupt)
    path, home = tiny_document().write(tmp_path / "strange.gguf"), Home(tmp_path / "home")

    with pytest.raises(KeyboardInterrupt):
        add_model(path, home, stream=io.StringIO())

    assert calls
    assert not [
        file for file in home.models.rglob("*") if file.is_file() and file.suffix != ".lock"
    ]
