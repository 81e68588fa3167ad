"""From the topology to commands and variables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from millrace.cli.stack.topology import ProcessSpec, Topology, load_topology
from millrace.cli.stack.wiring import Instance, Wiring, WiringOptions, fill, wire_stack
from millrace.config.home import Home
from millrace.core.errors import ConfigError

OPTIONS = WiringOptions(
    model="/models/tiny",
    served_name="tiny",
    num_workers=1,
    public_host="127.0.0.1",
    public_ports={"http_port": 18080, "grpc_port": 18051},
    external_urls={},
    overrides={},
)


def wire(options: WiringOptions = OPTIONS, topology: Topology | None = None) -> Wiring:
    def find_program(spec: ProcessSpec) -> Path:
        return Path("/bin") / spec.programs[0]

    return wire_stack(topology or load_topology(), options, Home(Path("/home")), find_program)


def by_name(wiring: Wiring) -> dict[str, Instance]:
    return {instance.name: instance for instance in wiring.instances}


def test_services_are_told_where_the_others_are() -> None:
    found = by_name(wire())

    gateway = found["gateway"].environ
    assert gateway["MILLRACE_GATEWAY_TOKENIZER_ADDRESSES"] == found["tokenizer"].address
    assert gateway["MILLRACE_GATEWAY_NATS_URL"] == f"nats://{found['nats'].address}"
    assert gateway["MILLRACE_GATEWAY_HTTP_PORT"] == "18080"
    worker = found["worker"]
    assert worker.environ["MILLRACE_WORKER_ADVERTISE_ADDRESS"] == worker.address
    assert worker.environ["MILLRACE_WORKER_MODEL"] == "/models/tiny"
    assert found["scheduler"].environ["MILLRACE_SCHEDULER_MODEL"] == "tiny"


def test_no_two_processes_share_a_port() -> None:
    wiring = wire(replace(OPTIONS, num_workers=3))

    ports = [port for instance in wiring.instances for port in instance.ports.values()]
    assert len(ports) == len(set(ports))


def test_several_workers_have_names_and_ports_of_their_own() -> None:
    found = by_name(wire(replace(OPTIONS, num_workers=2)))

    workers = [found["worker-1"], found["worker-2"]]
    told = [worker.environ["MILLRACE_WORKER_PORT"] for worker in workers]
    assert told == [worker.address.rsplit(":", 1)[1] for worker in workers]
    assert "worker" not in found


def test_a_server_run_elsewhere_is_not_started_but_prepared() -> None:
    wiring = wire(replace(OPTIONS, external_urls={"nats": "nats://elsewhere:4222"}))

    found = by_name(wiring)
    assert "nats" not in found
    assert found["worker"].environ["MILLRACE_WORKER_NATS_URL"] == "nats://elsewhere:4222"
    assert found["worker"].spec.needs == ("collector",)
    (command,) = wiring.init_commands
    assert command == ("bus", "init", "--url", "nats://elsewhere:4222", "--model", "tiny")


def test_spans_go_to_the_collector() -> None:
    found = by_name(wire())

    endpoint = found["worker"].environ["OTEL_EXPORTER_OTLP_ENDPOINT"]
    assert endpoint == f"http://{found['collector'].address}"
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in found["collector"].environ


def test_without_telemetry_nothing_collects_and_nothing_sends() -> None:
    found = by_name(wire(replace(OPTIONS, has_telemetry=False)))

    assert "collector" not in found
    assert found["worker"].environ["OTEL_SDK_DISABLED"] == "true"
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in found["worker"].environ


def test_a_flag_of_up_overrides_a_service_setting() -> None:
    options = replace(OPTIONS, overrides={"worker": {"dtype": "float32"}})

    assert by_name(wire(options))["worker"].environ["MILLRACE_WORKER_DTYPE"] == "float32"


def test_only_the_gateway_leaves_loopback() -> None:
    found = by_name(wire(replace(OPTIONS, public_host="0.0.0.0")))

    assert {name for name, item in found.items() if item.host != "127.0.0.1"} == {"gateway"}


def test_an_unknown_placeholder_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nothing is called \{moon.address\}"):
        fill("x {moon.address}", {"sun.address": "1"})
