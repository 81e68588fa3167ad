"""What a worker needs and only its first start has to make: kernels and packed weights."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

from millrace.cli.up_config import UpConfig
from millrace.config.home import Home
from millrace.engine.prepare import lacks_weights
from millrace.hub.entry import ModelEntry

from .engine_settings import engine_settings


def prepare_weights(
    entry: ModelEntry, config: UpConfig, environ: Mapping[str, str], home: Home
) -> None:
    """Makes them here, where the user sees the progress; the worker then only maps them.

    A failure is left to the worker, which meets it again and tells it with its settings.
    """
    settings = engine_settings(entry.path, entry.name, config, environ, home)
    if not lacks_weights(settings):
        return
    command = [sys.executable, "-m", "millrace.engine.prepare", "--model", str(entry.path)]
    command += ["--dtype", settings.dtype, "--quantization", settings.quantization]
    command += ["--instruction-path", settings.instruction_path, "--cache-dir", str(home.cache)]
    subprocess.run(command, check=False, env=dict(environ))
