"""From the topology to runnable instances: ports picked, addresses filled in, variables set."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from millrace.config.home import Home
from millrace.core.address import join_host_port
from millrace.core.errors import ConfigError
from millrace.core.url import Url

from .ports import pick_free_port
from .topology import ProcessSpec, Topology
from .tracing import COLLECTOR, Tracing

LOOPBACK = "127.0.0.1"
METRICS_PORT = "metrics_port"
# What a server that listens everywhere is reached by from here: it may have one kind only.
_FROM_HERE = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}
_PLACEHOLDER = re.compile(r"\{([a-z_]+(?:\.[a-z_]+)?)\}")


@dataclass(frozen=True, slots=True)
class Instance:
    """One process to run: its command, its variables beyond the supervisor's own, its address."""

    name: str
    spec: ProcessSpec
    host: str
    ports: Mapping[str, int]
    command: tuple[str, ...]
    environ: Mapping[str, str]
    init: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """host:port of the first port."""
        return join_host_port(self.host, next(iter(self.ports.values())))

    @property
    def metrics_address(self) -> str:
        """host:port where this machine reads its metrics; empty for one that serves none.

        The gateway has them beside its other routes.
        """
        port = self.ports.get(METRICS_PORT) or self.ports.get("http_port")
        return join_host_port(from_here(self.host), port) if port else ""


@dataclass(frozen=True, slots=True)
class WiringOptions:
    """What `up` decides before anything starts.

    `model` is what services resolve, `served_name` what requests call it. `public_ports` are the
    ports of public processes by setting; `external_urls` name servers that run elsewhere;
    `overrides` are settings by service that a flag of `up` gave. `metrics_ports` are those that the
    user chose by service: the first one of several processes, 0 for none.
    """

    model: str
    served_name: str
    num_workers: int
    public_host: str
    public_ports: Mapping[str, int]
    external_urls: Mapping[str, Url]
    overrides: Mapping[str, Mapping[str, str]]
    tracing: Tracing = Tracing()
    metrics_ports: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wiring:
    """Instances in start order, and the `millrace` commands that prepare servers run elsewhere.

    `init_environ` are the variables of all such commands: a URL may hold a password, and everybody
    may read the arguments of a process.
    """

    instances: tuple[Instance, ...]
    init_commands: tuple[tuple[str, ...], ...]
    init_environ: Mapping[str, str] = field(default_factory=dict, repr=False)


def from_here(host: str) -> str:
    """Where this machine reaches what listens on `host`."""
    return _FROM_HERE.get(host, host)


def wire_stack(
    topology: Topology,
    options: WiringOptions,
    home: Home,
    find_program: Callable[[ProcessSpec], Path],
) -> Wiring:
    """Fills in the topology. Raises `ConfigError` for a wrong placeholder or a missing server."""
    left_out = set(options.external_urls)
    if not options.tracing.has_collector:
        left_out.add(COLLECTOR)
    local = topology.without(left_out)
    seats = _seats(local, options)
    names = _names(topology, options, home, seats)
    instances = []
    for seat in seats:
        _, _, host, ports = seat
        all_names = {**names, **_own_names(host, ports)}
        instances.append(_instance(seat, all_names, options, find_program))
    init_commands = [
        tuple(fill(word, names) for word in topology.get(name).init)
        for name in options.external_urls
        if topology.get(name).init
    ]
    init_environ = {
        name: fill(value, names)
        for spec in topology.processes
        for name, value in spec.init_environ.items()
    }
    return Wiring(tuple(instances), tuple(init_commands), init_environ)


def fill(text: str, names: Mapping[str, str]) -> str:
    """Replaces every {placeholder}. Raises `ConfigError` where one is unknown."""

    def value_of(match: re.Match[str]) -> str:
        if match.group(1) not in names:
            raise ConfigError(f"topology: nothing is called {match.group(0)}")
        return names[match.group(1)]

    return _PLACEHOLDER.sub(value_of, text)


def env_name(service: str, setting: str) -> str:
    """MILLRACE_<SERVICE>_<SETTING>."""
    return f"MILLRACE_{service}_{setting}".upper()


_Seat = tuple[str, ProcessSpec, str, dict[str, int]]


def _seats(topology: Topology, options: WiringOptions) -> list[_Seat]:
    taken = set(options.public_ports.values())
    for chosen in options.metrics_ports.values():
        taken.update(range(chosen, chosen + options.num_workers))
    seats = []
    for spec in topology.processes:
        count = options.num_workers if spec.can_repeat else 1
        for index in range(count):
            name = spec.name if count == 1 else f"{spec.name}-{index + 1}"
            host = options.public_host if spec.is_public else LOOPBACK
            if spec.is_public:
                ports = {setting: options.public_ports[setting] for setting in spec.ports}
            else:
                ports = {setting: pick_free_port(host, taken) for setting in spec.ports}
            if (first := options.metrics_ports.get(spec.name)) is not None:
                ports[METRICS_PORT] = first + index if first else 0
            seats.append((name, spec, host, ports))
    return seats


def _names(
    topology: Topology, options: WiringOptions, home: Home, seats: list[_Seat]
) -> dict[str, str]:
    names = {
        "model": options.model,
        "served_name": options.served_name,
        "data": str(home.data),
        "deploy": str(topology.folder),
    }
    for spec in topology.processes:
        addresses = [
            join_host_port(host, next(iter(ports.values())))
            for _, other, host, ports in seats
            if other.name == spec.name
        ]
        if addresses:
            names[f"{spec.name}.address"] = ",".join(addresses)
            names[f"{spec.name}.url"] = fill(spec.url, {"self.address": addresses[0]})
    # With their passwords: they may stand in variables, and in no arguments.
    names.update({f"{name}.url": url.reveal() for name, url in options.external_urls.items()})
    return names


def _own_names(host: str, ports: Mapping[str, int]) -> dict[str, str]:
    port = next(iter(ports.values()))
    return {
        "self.host": host,
        "self.port": str(port),
        "self.address": join_host_port(host, port),
    }


def _instance(
    seat: _Seat,
    names: Mapping[str, str],
    options: WiringOptions,
    find_program: Callable[[ProcessSpec], Path],
) -> Instance:
    name, spec, host, ports = seat
    args = [fill(word, names) for word in spec.args]
    if spec.is_server:
        command = [str(find_program(spec)), *args]
        environ = {}
    else:
        command = [sys.executable, "-m", spec.module, *args]
        environ = _service_environ(spec, ports, names, options)
    init = tuple(fill(word, names) for word in spec.init)
    return Instance(name, spec, host, ports, tuple(command), environ, init)


def _service_environ(
    spec: ProcessSpec, ports: Mapping[str, int], names: Mapping[str, str], options: WiringOptions
) -> dict[str, str]:
    settings = {setting: fill(value, names) for setting, value in spec.settings.items()}
    settings.update({setting: str(port) for setting, port in ports.items()})
    settings.update(options.overrides.get(spec.name, {}))
    environ = {env_name(spec.name, setting): value for setting, value in settings.items()}
    environ.update(spec.environ)
    environ["PYTHONUNBUFFERED"] = "1"
    environ.update(options.tracing.environ_of(spec.name, names.get("collector.url", "")))
    return environ
