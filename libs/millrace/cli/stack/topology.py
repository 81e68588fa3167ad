"""The processes of a stack as deploy/topology.toml describes them."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from millrace.core.errors import ConfigError

READY_KINDS = ("tcp", "line")
PING_KINDS = ("", "http", "nats", "redis")


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process: what to run, what it needs, how its readiness shows.

    A service has `module`, a server has `programs`. `ports` maps the setting that takes the port
    to the fixed port in compose; `settings` and `args` hold {placeholders}; `environ` are variables
    of libraries beneath the process. `init` is a `millrace` command that prepares the server, with
    the variables `init_environ`. `ping` is the protocol in which the supervisor asks whether the
    process still answers, on `ping_port` if that is given.
    """

    name: str
    ports: Mapping[str, int]
    about: str = ""
    module: str = ""
    programs: tuple[str, ...] = ()
    package: str = ""
    min_version: str = ""
    config: str = ""
    args: tuple[str, ...] = ()
    url: str = ""
    init: tuple[str, ...] = ()
    init_environ: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    needs: tuple[str, ...] = ()
    ready: str = "line"
    ready_timeout_s: float = 60.0
    stop_grace_s: float = 10.0
    is_public: bool = False
    can_repeat: bool = False
    ping: str = ""
    ping_port: str = ""
    in_compose: bool = True
    settings: Mapping[str, str] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_server(self) -> bool:
        """True for a program that is not ours."""
        return bool(self.programs)


@dataclass(frozen=True, slots=True)
class Topology:
    """All processes, in start order."""

    processes: tuple[ProcessSpec, ...]
    folder: Path

    def get(self, name: str) -> ProcessSpec:
        """The process called `name`; raises `KeyError`."""
        return {spec.name: spec for spec in self.processes}[name]

    def without(self, names: Iterable[str]) -> Topology:
        """The same stack with some processes left out, and nobody needing them."""
        dropped = set(names)
        kept = []
        for spec in self.processes:
            if spec.name not in dropped:
                needs = tuple(name for name in spec.needs if name not in dropped)
                kept.append(_replaced_needs(spec, needs))
        return Topology(tuple(kept), self.folder)


def _replaced_needs(spec: ProcessSpec, needs: tuple[str, ...]) -> ProcessSpec:
    values = {name: getattr(spec, name) for name in ProcessSpec.__dataclass_fields__}
    return ProcessSpec(**{**values, "needs": needs})


def deploy_folder() -> Path:
    """The folder that holds topology.toml: the checkout's, else the installed one."""
    here = Path(__file__).resolve()
    for folder in (here.parents[4] / "deploy", here.parents[2] / "deploy"):
        if (folder / "topology.toml").is_file():
            return folder
    raise ConfigError("deploy/topology.toml is missing from this installation")


def load_topology(path: Path | None = None) -> Topology:
    """Reads and checks the description. Raises `ConfigError` naming the process and the key."""
    path = deploy_folder() / "topology.toml" if path is None else path
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path}: {exc}") from exc
    specs = [_parse(path, name, table) for name, table in document.get("processes", {}).items()]
    seen: set[str] = set()
    for spec in specs:
        for name in spec.needs:
            if name not in seen:
                raise ConfigError(f"{path}: {spec.name} needs {name}, which does not start before")
        seen.add(spec.name)
    return Topology(tuple(specs), path.parent)


def _parse(path: Path, name: str, table: dict[str, Any]) -> ProcessSpec:
    known = ProcessSpec.__dataclass_fields__
    if unknown := [key for key in table if key not in known or key == "name"]:
        raise ConfigError(f"{path}: {name}: unknown key {unknown[0]}")
    values: dict[str, Any] = {"ports": {}}
    for key, value in table.items():
        values[key] = tuple(value) if isinstance(value, list) else value
    spec = ProcessSpec(name=name, **values)
    if bool(spec.module) == bool(spec.programs):
        raise ConfigError(f"{path}: {name}: needs either module or programs")
    if spec.ready not in READY_KINDS or not spec.ports:
        raise ConfigError(f"{path}: {name}: ready must be one of {READY_KINDS} and ports be given")
    if spec.ping not in PING_KINDS or (spec.ping_port and spec.ping_port not in spec.ports):
        raise ConfigError(f"{path}: {name}: ping must be one of {PING_KINDS}, ping_port a port")
    return spec
