"""From the settings of `up` to what is wired: model, ports, addresses, overrides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from millrace.cli.service_settings import explain_service
from millrace.cli.up_config import UpConfig
from millrace.config.home import Home
from millrace.core.address import join_host_port
from millrace.core.errors import ConfigError
from millrace.core.loopback import is_loopback
from millrace.core.url import Url
from millrace.engine.machine import usable_cpus

from .ports import can_bind, describe_port_owner, require_free_port
from .servers import find_server
from .topology import Topology
from .tracing import plan_tracing
from .wiring import LOOPBACK, METRICS_PORT, WiringOptions, from_here


@dataclass(frozen=True, slots=True)
class ServedModel:
    """`reference` is what services resolve, `name` what requests call it."""

    reference: str
    name: str


def choose_model(config: UpConfig, topology: Topology, environ: Mapping[str, str]) -> str:
    """The model as the user wrote it: the flag of `up`, else the worker's own setting."""
    if config.model:
        return config.model
    return str(explain_service(topology, "worker", environ)["model"].value)


@dataclass(frozen=True, slots=True)
class PublicEdge:
    """Where the gateway is to listen: ports by setting, and whether that may be beyond loopback."""

    host: str
    ports: Mapping[str, int]
    is_bind_allowed: bool


def public_edge(config: UpConfig, topology: Topology, environ: Mapping[str, str]) -> PublicEdge:
    """Raises `ConfigError` for a busy port, and for a host that needs a flag."""
    gateway = explain_service(topology, "gateway", environ)
    host = config.host or str(gateway["host"].value)
    is_bind_allowed = config.insecure_bind or bool(gateway["insecure_bind"].value)
    if not is_loopback(host) and not is_bind_allowed:
        raise ConfigError(
            f"{host} is beyond loopback and the gateway has no API keys; "
            "use --insecure-bind if everyone who can reach it may use it"
        )
    ports = {
        "http_port": config.http_port or int(gateway["http_port"].value),
        "grpc_port": config.grpc_port or int(gateway["grpc_port"].value),
    }
    for setting, port in ports.items():
        require_free_port(host, port, "--" + setting.replace("_", "-"))
    return PublicEdge(host, ports, is_bind_allowed)


def external_urls(config: UpConfig) -> dict[str, Url]:
    """The servers that run elsewhere, by the name of the process that is not started then."""
    urls: dict[str, Url | None] = {"nats": config.nats_url, "valkey": config.redis_url}
    return {name: url for name, url in urls.items() if url is not None}


def require_startable(
    config: UpConfig, topology: Topology, home: Home, environ: Mapping[str, str]
) -> None:
    """Checks all that needs no model, before one is fetched. Raises `ConfigError`."""
    public_edge(config, topology, environ)
    plan_tracing(environ, home, is_kept=config.telemetry)
    _metrics_ports(config, topology, environ)
    local = topology.without(external_urls(config)).processes
    for spec in local:
        if spec.config:
            explain_service(topology, spec.name, environ)
    for spec in local:
        if spec.is_server:
            find_server(spec, environ.get("PATH"))
    home.require_writable((home.run, home.logs, home.data))


def wiring_options(
    config: UpConfig,
    topology: Topology,
    model: ServedModel,
    home: Home,
    environ: Mapping[str, str],
) -> WiringOptions:
    """Everything that is decided before the first process starts. Raises `ConfigError`."""
    edge = public_edge(config, topology, environ)
    return WiringOptions(
        model=model.reference,
        served_name=model.name,
        num_workers=config.workers,
        public_host=edge.host,
        public_ports=edge.ports,
        external_urls=external_urls(config),
        overrides=_overrides(config, environ, edge.is_bind_allowed),
        tracing=plan_tracing(environ, home, is_kept=config.telemetry),
        metrics_ports=_metrics_ports(config, topology, environ),
    )


def _metrics_ports(
    config: UpConfig, topology: Topology, environ: Mapping[str, str]
) -> dict[str, int]:
    """What the user has set; several workers take one after the other from there."""
    chosen = {}
    for spec in topology.processes:
        if METRICS_PORT not in spec.ports:
            continue
        setting = explain_service(topology, spec.name, environ)[METRICS_PORT]
        if setting.origin == "default":
            continue
        first = chosen[spec.name] = int(setting.value)
        count = config.workers if spec.can_repeat else 1
        for port in range(first, first + count) if first else ():
            if not can_bind(LOOPBACK, port):
                raise ConfigError(
                    f"{setting.env}: port {port} on {LOOPBACK} is in use by "
                    f"{describe_port_owner(port)}; choose another",
                    field=METRICS_PORT,
                )
    return chosen


def _overrides(
    config: UpConfig, environ: Mapping[str, str], is_bind_allowed: bool
) -> dict[str, dict[str, str]]:
    asked = {"dtype": config.dtype, "quantization": config.quantization}
    worker = {name: value for name, value in asked.items() if value}
    if config.workers > 1 and "MILLRACE_WORKER_NUM_THREADS" not in environ:
        # Workers of one machine share its cores.
        worker["num_threads"] = str(max(1, usable_cpus() // config.workers))
    gateway = {"insecure_bind": "true"} if is_bind_allowed else {}
    return {"worker": worker, "gateway": gateway}


def public_endpoints(options: WiringOptions) -> dict[str, str]:
    """Where this machine reaches the gateway."""
    host = from_here(options.public_host)
    return {
        "http": f"http://{join_host_port(host, options.public_ports['http_port'])}",
        "grpc": join_host_port(host, options.public_ports["grpc_port"]),
    }
