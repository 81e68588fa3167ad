"""What a worker needs and only its first start has to make: kernels and packed weights."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping

from millrace.cli.up_config import UpConfig
from millrace.config.home import Home
from millrace.core.errors import UnsupportedModel
from millrace.engine.prepare import UNSERVABLE, lacks_weights
from millrace.hub.entry import ModelEntry

from .engine_settings import engine_settings


def prepare_weights(
    entry: ModelEntry, config: UpConfig, environ: Mapping[str, str], home: Home
) -> None:
    """Makes them here, where the user sees the progress; the worker then only maps them.

    Raises `UnsupportedModel` if the model turns out to be one that no worker can serve. What the
    machine fails at is left to the worker, which may have another way.
    """
    settings = engine_settings(entry.path, entry.name, config, environ, home)
    if not lacks_weights(settings):
        return
    command = [sys.executable, "-m", "millrace.engine.prepare", "--model", str(entry.path)]
    command += ["--dtype", settings.dtype, "--quantization", settings.quantization]
    command += ["--instruction-path", settings.instruction_path, "--cache-dir", str(home.cache)]
    result = subprocess.run(command, check=False, env=dict(environ), stderr=subprocess.PIPE)
    said = result.stderr.decode(errors="replace").strip()
    if result.returncode == UNSERVABLE:
        raise UnsupportedModel(f"{entry.name} cannot be served: {said}", field="model")
    if result.returncode < 0:
        ended_by = signal.Signals(-result.returncode).name
        raise UnsupportedModel(
            f"{entry.name} cannot be served: packing its weights was ended with {ended_by}; "
            "is there memory for it?",
            field="model",
        )
    if said:
        print(said, file=sys.stderr)
