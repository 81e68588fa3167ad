"""What an import makes of a GGUF file that may be wrong, told as one text."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from millrace.config.home import Home
from millrace.core.errors import MillraceError, UnsupportedModel
from millrace.engine.config import EngineConfig
from millrace.engine.engine import create_engine
from millrace.engine.local import LocalGenerator, LocalRequest
from millrace.engine.models.checkpoint_check import check_checkpoint
from millrace.hub.gguf_import import convert_gguf
from millrace.tokenizer.codec import load_codec
from tests.unit.hub.gguf_document import Document

# Imports a file. Returns why it was refused, "" if it was taken and its model ran.
Take = Callable[[bytes | Document], str]


def run(folder: Path, home: Home) -> None:
    """A prompt through the tokenizer and an engine, as a tokenizer and a worker would."""
    assert check_checkpoint(folder) == "native"
    ids = load_codec(folder, home).encode_text("h")
    engine = create_engine(
        EngineConfig(
            model_path=folder,
            name=folder.name,
            dtype="float32",
            backend="torch",
            num_blocks=2,
            num_threads=1,
        )
    )
    if len(ids) < engine.info.max_model_len:
        LocalGenerator(engine).generate([LocalRequest(ids, 1)])


def taking(tmp_path: Path) -> Take:
    """A `Take` whose files lie in this folder."""
    home = Home(tmp_path / "home")
    path = tmp_path / "strange.gguf"
    folder = tmp_path / "taken"

    def outcome(content: bytes | Document) -> str:
        path.write_bytes(content if isinstance(content, bytes) else content.content())
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            convert_gguf(path, folder)
        except MillraceError as error:
            assert isinstance(error, UnsupportedModel)
            assert "\n" not in error.message
            assert error.message.startswith(f"{path}: ")
            assert len(error.message) < 500
            # Only weights are looked at while they are written.
            assert not list(folder.iterdir()) or "not finite" in error.message
            return error.message
        run(folder, home)
        return ""

    return outcome
