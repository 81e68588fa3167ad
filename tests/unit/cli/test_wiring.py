"""From the topology to commands and variables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from millrace.cli.stack.topology import ProcessSpec, Topology, load_topology
from millrace.cli.stack.wiring import Instance, Wiring, WiringOptions, fill, wire_stack
from millrace.config.home import Home
from millrace.core.errors import ConfigError
from millrace.core.url import NatsUrl

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
    url = NatsUrl("nats://bob:hunter2@elsewhere:4222")
    wiring = wire(replace(OPTIONS, external_urls={"nats": url}))

    found = by_name(wiring)
    assert "nats" not in found
    assert found["worker"].environ["MILLRACE_WORKER_NATS_URL"] == url.reveal()
    assert found["worker"].spec.needs == ("collector",)
    (command,) = wiring.init_commands
    assert command == ("bus", "init", "--model", "tiny")
    assert wiring.init_environ == {"MILLRACE_BUS_NATS_URL": url.reveal()}
    assert all("hunter2" not in word for item in wiring.instances for word in item.command)


def test_no_argument_of_the_topology_takes_a_url() -> None:
    for spec in load_topology().processes:
        assert not [word for word in (*spec.args, *spec.init) if ".url}" in word], spec.name


def test_a_flag_of_up_overrides_a_service_setting() -> None:
    options = replace(OPTIONS, overrides={"worker": {"dtype": "float32"}})

    assert by_name(wire(options))["worker"].environ["MILLRACE_WORKER_DTYPE"] == "float32"


def test_only_the_gateway_leaves_loopback() -> None:
    found = by_name(wire(replace(OPTIONS, public_host="0.0.0.0")))

    assert {name for name, item in found.items() if item.host != "127.0.0.1"} == {"gateway"}


def test_an_unknown_placeholder_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nothing is called \{moon.address\}"):
        fill("x {moon.address}", {"sun.address": "1"})
