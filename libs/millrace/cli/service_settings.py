"""The settings dataclass of each process, found by the name that the topology gives."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from millrace.config.loader import SettingValue, explain_config
from millrace.core.errors import ConfigError

from .stack.topology import ProcessSpec, Topology


def settings_class(spec: ProcessSpec) -> type[Any]:
    """Imports the settings dataclass of a service. Raises `ConfigError` where it has none."""
    module_name, _, class_name = spec.config.partition(":")
    if not class_name:
        raise ConfigError(f"{spec.name} has no settings of ours")
    cls: type[Any] = getattr(importlib.import_module(module_name), class_name)
    return cls


def explain_service(
    topology: Topology, service: str, environ: Mapping[str, str] | None = None
) -> dict[str, SettingValue]:
    """Settings of one service by name, with value and origin."""
    cls = settings_class(topology.get(service))
    return {item.name: item for item in explain_config(cls, service, environ=environ)}
