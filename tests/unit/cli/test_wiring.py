"""From the topology to commands and variables."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from millrace.cli.stack.metrics_targets import remove_targets, write_targets
from millrace.cli.stack.options import ServedModel, require_startable, wiring_options
from millrace.cli.stack.topology import ProcessSpec, Topology, load_topology
from millrace.cli.stack.wiring import Instance, Wiring, WiringOptions, fill, wire_stack
from millrace.cli.up_config import UpConfig
from millrace.config.home import Home
from millrace.core.errors import ConfigError
from millrace.core.url import NatsUrl

MODEL = ServedModel("/models/tiny", "tiny")
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
    bound = f"{worker.environ['MILLRACE_WORKER_HOST']}:{worker.environ['MILLRACE_WORKER_PORT']}"
    # Which it tells of itself, unless the user knows better.
    assert bound == worker.address
    assert "MILLRACE_WORKER_ADVERTISE_ADDRESS" not in worker.environ
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


def test_every_service_serves_its_metrics_on_a_port_of_its_own() -> None:
    wiring = wire(replace(OPTIONS, num_workers=2))

    served = {item.name: item.metrics_address for item in wiring.instances if item.metrics_address}
    assert set(served) == {
        *("cache", "tokenizer", "worker-1", "worker-2", "scheduler", "gateway"),
    }
    assert len(set(served.values())) == len(served)
    assert served["gateway"] == "127.0.0.1:18080"
    worker = by_name(wiring)["worker-2"]
    told = worker.environ["MILLRACE_WORKER_METRICS_PORT"]
    assert worker.metrics_address == f"127.0.0.1:{told}"


def test_chosen_metrics_port_is_that_of_the_first_worker_and_no_two_collide() -> None:
    wiring = wire(replace(OPTIONS, num_workers=3, metrics_ports={"worker": 21000, "cache": 0}))

    found = by_name(wiring)
    workers = [found[f"worker-{number}"].metrics_address for number in (1, 2, 3)]
    assert workers == [f"127.0.0.1:{port}" for port in (21000, 21001, 21002)]
    assert found["cache"].metrics_address == ""
    assert found["cache"].environ["MILLRACE_CACHE_METRICS_PORT"] == "0"


def test_gateway_on_every_address_is_scraped_over_loopback() -> None:
    found = by_name(wire(replace(OPTIONS, public_host="0.0.0.0")))

    assert found["gateway"].metrics_address == "127.0.0.1:18080"


def test_targets_of_prometheus_name_service_and_instance(tmp_path: Path) -> None:
    wiring, home = wire(replace(OPTIONS, num_workers=2)), Home(tmp_path)
    home.run.mkdir()
    write_targets(home, wiring.instances)

    groups = json.loads((home.run / "prometheus-targets.json").read_text())
    assert [group["labels"] for group in groups][2:4] == [
        {"service": "worker", "instance": "worker-1"},
        {"service": "worker", "instance": "worker-2"},
    ]
    for group in groups:
        assert set(group) == {"targets", "labels"}, "as file_sd_configs has it"
        (target,) = group["targets"]
        assert target.startswith("127.0.0.1:")
    remove_targets(home)
    assert list(home.run.iterdir()) == []


@pytest.fixture
def topology() -> Topology:
    return load_topology()


def test_port_that_the_user_chose_is_taken_as_it_is(topology: Topology) -> None:
    environ = {"MILLRACE_WORKER_METRICS_PORT": "21500", "MILLRACE_SCHEDULER_METRICS_PORT": "0"}

    options = wiring_options(
        UpConfig(http_port=28099, grpc_port=28098), topology, MODEL, Home(Path("/home")), environ
    )

    assert options.metrics_ports == {"worker": 21500, "scheduler": 0}


def test_metrics_port_in_use_is_told_before_anything_starts(
    topology: Topology, tmp_path: Path
) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        # The second worker's.
        environ = {"MILLRACE_WORKER_METRICS_PORT": str(port - 1)}
        config = UpConfig(workers=2, http_port=28099, grpc_port=28098)

        with pytest.raises(ConfigError) as caught:
            require_startable(config, topology, Home(tmp_path), environ)

    assert caught.value.message.startswith(
        f"MILLRACE_WORKER_METRICS_PORT: port {port} on 127.0.0.1 is in use by "
    )


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
