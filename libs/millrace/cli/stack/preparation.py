"""What a worker needs and only its first start has to make: kernels and packed weights."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping

from millrace.cli.service_settings import explain_service
from millrace.cli.up_config import UpConfig
from millrace.config.home import Home
from millrace.engine.config import EngineConfig
from millrace.engine.prepare import lacks_weights
from millrace.hub.entry import ModelEntry

from .topology import load_topology


def prepare_weights(
    entry: ModelEntry, config: UpConfig, environ: Mapping[str, str], home: Home
) -> None:
    """Makes them here, where the user sees the progress; the worker then only maps them.

    A failure is left to the worker, which meets it again and tells it with its settings.
    """
    worker = {
        name: str(setting.value)
        for name, setting in explain_service(load_topology(), "worker", environ).items()
    }
    dtype = config.dtype or worker["dtype"]
    quantization = config.quantization or worker["quantization"]
    settings = EngineConfig(
        model_path=entry.path,
        name=entry.name,
        dtype=dtype,
        device=worker["device"],
        backend=worker["backend"],
        route=worker["route"],
        block_size=int(worker["block_size"]),
        quantization=quantization,
        instruction_path=worker["instruction_path"],
        cache_dir=home.cache,
    )
    if not lacks_weights(settings):
        return
    command = [sys.executable, "-m", "millrace.engine.prepare", "--model", str(entry.path)]
    command += ["--dtype", dtype, "--quantization", quantization]
    command += ["--instruction-path", settings.instruction_path, "--cache-dir", str(home.cache)]
    subprocess.run(command, check=False, env=dict(environ))
