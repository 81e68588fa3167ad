"""Who serves a model folder can be told from outside, for as long as the engine lives."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from millrace.engine.config import EngineConfig
from millrace.engine.engine import create_engine
from millrace.engine.served import who_serves

MODELS = {"llama": "native", "phi3": "generic"}


@pytest.mark.parametrize("name", MODELS)
def test_an_engine_marks_the_folder_it_serves_and_another_does_not(
    tiny: Callable[[str], Any], tmp_path: Path, name: str
) -> None:
    folder, other = tmp_path / "served", tmp_path / "other"
    for copy in (folder, other):
        shutil.copytree(tiny(name).path, copy)

    engine = create_engine(EngineConfig(folder, "x", backend="torch", num_blocks=4))
    assert who_serves(folder) == f"process {os.getpid()}"
    assert who_serves(other) == ""

    del engine
    gc.collect()
    assert who_serves(folder) == ""
