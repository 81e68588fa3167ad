"""The one description of processes, and compose, which must agree with it."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from millrace.cli.service_settings import settings_class
from millrace.cli.stack.topology import ProcessSpec, Topology, load_topology
from millrace.config.environment import GRPC_EXPERIMENTS
from millrace.config.loader import declared_settings
from millrace.core.errors import ConfigError

ROOT = Path(__file__).parents[3]
# Compose has these beside the topology: preparation that `up` does itself, its telemetry.
COMPOSE_ONLY = {"bus-init", "model-init"} | {
    *("otel-collector", "jaeger", "prometheus", "grafana"),
}
MODEL = "${MILLRACE_MODEL:-smollm2-135m-instruct}"
WILDCARD_HOST = "0.0.0.0"
# Two replicas cannot have the same.
OF_ONE_REPLICA = ("advertise_address", "worker_id", "scheduler_id")
LOGS = {"MILLRACE_LOG_LEVEL", "MILLRACE_LOG_FORMAT"}
TELEMETRY = {
    *("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS", "OTEL_TRACES_EXPORTER"),
    *("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"),
    *("OTEL_RESOURCE_ATTRIBUTES", "OTEL_SDK_DISABLED"),
}
DOWNLOAD = {
    *("HF_TOKEN", "HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"),
}


@pytest.fixture(scope="module")
def topology() -> Topology:
    return load_topology()


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    yaml = importlib.import_module("yaml")
    document: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return document


def in_compose(topology: Topology) -> list[ProcessSpec]:
    return [spec for spec in topology.processes if spec.in_compose]


def names_in_compose(topology: Topology, own: ProcessSpec) -> dict[str, str]:
    """The values of the placeholders where every process has a DNS name and a fixed port."""
    names = {"model": MODEL, "served_name": MODEL, "self.host": WILDCARD_HOST}
    for spec in topology.processes:
        address = f"{spec.name}:{next(iter(spec.ports.values()))}"
        names[f"{spec.name}.address"] = address
        names[f"{spec.name}.url"] = spec.url.replace("{self.address}", address)
    names["self.address"] = names[f"{own.name}.address"]
    names["self.port"] = str(next(iter(own.ports.values())))
    return names


def filled(text: str, names: Mapping[str, str]) -> str:
    return re.sub(r"\{([a-z_.]+)\}", lambda match: names.get(match.group(1), match.group()), text)


def is_passed_through(key: str, value: str | None) -> bool:
    """True for a variable that has its value, if any, from the user of compose."""
    return value is None or value.startswith(f"${{{key}:-")


def test_compose_has_exactly_the_processes_of_the_topology(
    topology: Topology, compose: dict[str, Any]
) -> None:
    assert {spec.name for spec in in_compose(topology)} == set(compose["services"]) - COMPOSE_ONLY


def test_compose_services_get_the_settings_of_the_topology(
    topology: Topology, compose: dict[str, Any]
) -> None:
    for spec in in_compose(topology):
        if spec.is_server:
            continue
        names = names_in_compose(topology, spec)
        wanted = {key: filled(value, names) for key, value in spec.settings.items()}
        wanted.update({key: str(port) for key, port in spec.ports.items()})
        if spec.is_public:
            wanted["insecure_bind"] = "true"
        prefix = f"MILLRACE_{spec.name.upper()}_"
        environment = compose["services"][spec.name]["environment"]
        found = {
            key.removeprefix(prefix).lower(): value
            for key, value in environment.items()
            if key.startswith(prefix) and not is_passed_through(key, value)
        }
        assert found == wanted, spec.name
        assert environment.items() >= spec.environ.items(), spec.name
        assert compose["services"][spec.name]["command"] == ["python", "-m", spec.module]


def test_compose_servers_run_the_image_and_arguments_of_the_topology(
    topology: Topology, compose: dict[str, Any]
) -> None:
    for spec in in_compose(topology):
        if not spec.is_server:
            continue
        service = compose["services"][spec.name]
        names = names_in_compose(topology, spec)
        names |= {"deploy": "/etc/millrace", "data": "/data"}
        wanted = [filled(word, names) for word in spec.args]
        given = service["command"]
        assert service["image"] == spec.image
        assert service["command"][0] == spec.programs[0]
        assert given[1 : len(wanted) + 1] == wanted, spec.name


def test_compose_waits_for_what_the_topology_needs(
    topology: Topology, compose: dict[str, Any]
) -> None:
    kept = {spec.name for spec in in_compose(topology)}
    for spec in in_compose(topology):
        given = compose["services"][spec.name].get("depends_on", {})
        for name in set(spec.needs) & kept:
            assert given[name] == {"condition": "service_healthy"}, spec.name
        if "nats" in spec.needs:
            assert given["bus-init"] == {"condition": "service_completed_successfully"}


def test_compose_passes_every_other_setting_through(
    topology: Topology, compose: dict[str, Any]
) -> None:
    for spec in in_compose(topology):
        if not spec.config:
            continue
        environment = compose["services"][spec.name]["environment"]
        for item in declared_settings(settings_class(spec), spec.name):
            if item.name in (*spec.settings, *spec.ports, *OF_ONE_REPLICA, "insecure_bind"):
                continue
            assert item.env in environment, spec.name
            assert is_passed_through(item.env, environment[item.env]), item.env
        assert environment.keys() >= LOGS | TELEMETRY, spec.name
        own = {item.env for item in declared_settings(settings_class(spec), spec.name)}
        passed = {key for key, value in environment.items() if is_passed_through(key, value)}
        assert passed <= LOGS | TELEMETRY | own, spec.name


def test_compose_lets_replicas_name_and_address_themselves(
    topology: Topology, compose: dict[str, Any]
) -> None:
    for spec in in_compose(topology):
        service = compose["services"][spec.name]
        assert "container_name" not in service and "hostname" not in service, spec.name
        for name in OF_ONE_REPLICA:
            assert f"MILLRACE_{spec.name}_{name}".upper() not in service.get("environment", {})
    assert "ports" not in compose["services"]["worker"]


def test_compose_passes_tokens_and_proxies_to_the_download_alone(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        environment = service.get("environment", {})
        found = DOWNLOAD & {key.upper() for key in environment}
        assert found == (DOWNLOAD if name == "model-init" else set()), name
        assert "env_file" not in service, name
    model_init = compose["services"]["model-init"]["environment"]
    assert all(model_init[key] is None for key in model_init if key.upper() in DOWNLOAD)
    assert {"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"} <= model_init.keys()


def test_compose_prepares_the_bus_as_the_topology_does(
    topology: Topology, compose: dict[str, Any]
) -> None:
    spec = topology.get("nats")
    names = names_in_compose(topology, spec)
    command = compose["services"]["bus-init"]["command"]

    assert command == ["millrace", *(filled(word, names) for word in spec.init)]


def test_compose_publishes_on_loopback_only(compose: dict[str, Any]) -> None:
    published = [port for item in compose["services"].values() for port in item.get("ports", [])]

    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_compose_checks_the_health_of_every_process(
    topology: Topology, compose: dict[str, Any]
) -> None:
    for spec in in_compose(topology):
        assert compose["services"][spec.name]["healthcheck"]["test"], spec.name


def test_every_setting_of_the_topology_exists(topology: Topology) -> None:
    for spec in topology.processes:
        if spec.config:
            known = settings_class(spec).__dataclass_fields__
            assert {*spec.settings, *spec.ports} <= set(known), spec.name


def test_every_process_is_asked_whether_it_still_answers(topology: Topology) -> None:
    assert [spec.name for spec in topology.processes if not spec.ping] == []


def test_servers_start_first_and_the_gateway_last(topology: Topology) -> None:
    names = [spec.name for spec in topology.processes]

    assert names[:3] == ["nats", "valkey", "collector"]
    assert names[-2:] == ["scheduler", "gateway"]


def test_leaving_a_process_out_frees_those_that_need_it(topology: Topology) -> None:
    smaller = topology.without(["collector"])

    assert "collector" not in [spec.name for spec in smaller.processes]
    assert smaller.get("cache").needs == ("valkey",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[processes.a]\nmodule='a'\nports={port=1}\nneeds=['b']", "a needs b, which does not"),
        ("[processes.a]\nmodule='a'\nports={port=1}\nmood='good'", "a: unknown key mood"),
        ("[processes.a]\nports={port=1}", "a: needs either module or programs"),
        ("[processes.a]\nmodule='a'", "ports be given"),
    ],
)
def test_a_wrong_topology_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "topology.toml"
    path.write_text(text)

    with pytest.raises(ConfigError, match=message):
        load_topology(path)


def test_grpc_knows_the_experiments_that_services_run_with(topology: Topology) -> None:
    wanted = {spec.environ.get("GRPC_EXPERIMENTS", "") for spec in topology.processes}
    (experiments,) = wanted - {""}
    assert experiments == GRPC_EXPERIMENTS, "the command line's is another"
    services = {spec.name for spec in topology.processes if "GRPC_EXPERIMENTS" in spec.environ}
    assert services == {"cache", "tokenizer", "worker", "scheduler", "gateway"}
    assert "Unknown experiment" in _complaints("-no_such_experiment"), "it does not complain"
    assert "Unknown experiment" not in _complaints(experiments)


def _complaints(experiments: str) -> str:
    """What gRPC says on stderr when it is first used with them."""
    done = subprocess.run(
        [sys.executable, "-c", "import grpc; grpc.insecure_channel('127.0.0.1:1')"],
        env={**os.environ, "GRPC_EXPERIMENTS": experiments},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stderr
