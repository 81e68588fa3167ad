"""The settings with which the workers of a stack load a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from millrace.cli.service_settings import explain_service
from millrace.cli.up_config import UpConfig
from millrace.config.home import Home
from millrace.config.loader import load_config
from millrace.core.errors import MillraceError
from millrace.engine.config import EngineConfig, resolve_config, weight_kind
from millrace.engine.config_json import read_config

from .run_file import running_stack
from .settings_file import read_settings_file
from .topology import load_topology

_WORKER = "worker"


def engine_settings(
    folder: Path, name: str, config: UpConfig, environ: Mapping[str, str], home: Home
) -> EngineConfig:
    """Those of a worker that `up` would start now with this model."""
    worker = {
        name: str(setting.value)
        for name, setting in explain_service(load_topology(), _WORKER, environ).items()
    }
    given = {"dtype": config.dtype, "quantization": config.quantization}
    return _engine_config(
        folder, name, worker | {key: value for key, value in given.items() if value}, home
    )


def weight_kinds(folder: Path, name: str, environ: Mapping[str, str], home: Home) -> frozenset[str]:
    """How workers store the weights of a model: those started now, and those that run."""
    config = load_config(UpConfig, "up", [], environ=environ)
    settings = [engine_settings(folder, name, config, environ, home)]
    if running_stack(home):
        for process, reports in read_settings_file(home).items():
            if process.partition("-")[0] == _WORKER:
                worker = {str(each["name"]): str(each["value"]) for each in reports}
                settings.append(_engine_config(folder, name, worker, home))
    return frozenset(filter(None, map(_kind, settings)))


def _engine_config(folder: Path, name: str, worker: Mapping[str, str], home: Home) -> EngineConfig:
    return EngineConfig(
        model_path=folder,
        name=name,
        dtype=worker["dtype"],
        device=worker["device"],
        backend=worker["backend"],
        route=worker["route"],
        block_size=int(worker["block_size"]),
        quantization=worker["quantization"],
        instruction_path=worker["instruction_path"],
        cache_dir=home.cache,
    )


def _kind(settings: EngineConfig) -> str:
    """ "" if these settings do without packed weights."""
    try:
        checkpoint = read_config(settings.model_path)
        resolved = resolve_config(settings, checkpoint, has_cuda=False, has_kernels=True)
    except MillraceError:
        return ""
    return weight_kind(resolved) if resolved.backend == "cpu" else ""
