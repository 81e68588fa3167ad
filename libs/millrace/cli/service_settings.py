"""The settings dataclass of each process, found by the name that the topology gives."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from millrace.config.loader import SettingValue, explain_config
from millrace.core.errors import ConfigError

from .bus_config import BusConfig
from .stack.topology import ProcessSpec, Topology
from .up_config import UpConfig

# Tables that are no process of a stack.
COMMANDS: dict[str, type[Any]] = {"up": UpConfig, "bus": BusConfig}


def settings_class(spec: ProcessSpec) -> type[Any]:
    """Imports the settings dataclass of a service. Raises `ConfigError` if it has none."""
    module_name, _, class_name = spec.config.partition(":")
    if not class_name:
        raise ConfigError(f"{spec.name} has no settings of ours")
    cls: type[Any] = getattr(importlib.import_module(module_name), class_name)
    return cls


def settings_names(topology: Topology) -> list[str]:
    """Every table of the settings file, in the order in which it is shown."""
    return [*COMMANDS, *(spec.name for spec in topology.processes if spec.config)]


def find_settings(topology: Topology, name: str) -> type[Any]:
    """The dataclass behind a table of the settings file."""
    return COMMANDS[name] if name in COMMANDS else settings_class(topology.get(name))


def explain_service(
    topology: Topology, service: str, environ: Mapping[str, str] | None = None
) -> dict[str, SettingValue]:
    """Settings of one table by name, with value and origin."""
    cls = find_settings(topology, service)
    return {item.name: item for item in explain_config(cls, service, environ=environ)}
