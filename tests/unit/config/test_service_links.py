"""Kubernetes' variables of Services beside settings of ours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from millrace.cli.service_settings import explain_service, settings_names
from millrace.cli.stack.topology import load_topology
from millrace.config.loader import check_variables
from millrace.config.service_links import is_service_link
from millrace.core.errors import ConfigError

SERVICES = (
    *("millrace", "millrace-gateway", "millrace-tokenizer", "millrace-scheduler"),
    *("millrace-worker", "millrace-cache", "millrace-collector", "millrace-up", "millrace-bus"),
    *("millrace-worker-headless", "millrace-gateway-http", "millrace-nats"),
)
ADDRESSES = ("10.0.0.7", "fd00::7")


def links(service: str, address: str) -> Iterator[tuple[str, str]]:
    """What the kubelet gives to every container of the namespace (envvars.FromServices)."""
    name = service.upper().replace("-", "_")
    host = f"[{address}]" if ":" in address else address
    yield f"{name}_SERVICE_HOST", address
    yield f"{name}_SERVICE_PORT", "50062"
    yield f"{name}_SERVICE_PORT_GRPC", "50062"
    yield f"{name}_SERVICE_PORT_METRICS_V1", "9464"
    yield f"{name}_PORT", f"tcp://{host}:50062"
    for port, protocol in (("50062", "TCP"), ("9464", "UDP"), ("80", "SCTP")):
        prefix = f"{name}_PORT_{port}_{protocol}"
        yield prefix, f"{protocol.lower()}://{host}:{port}"
        yield f"{prefix}_PROTO", protocol.lower()
        yield f"{prefix}_PORT", port
        yield f"{prefix}_ADDR", address


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("service", SERVICES)
def test_links_of_any_service_change_nothing(service: str, address: str) -> None:
    environ = dict(links(service, address)) | {"MILLRACE_HOME": "/nowhere"}
    topology = load_topology()

    check_variables(environ)
    for name in settings_names(topology):
        values = explain_service(topology, name, environ).values()
        assert {value.origin for value in values} == {"default"}, name


def test_a_setting_beside_links_still_counts() -> None:
    environ = dict(links("millrace-cache", "10.0.0.7")) | {
        "MILLRACE_HOME": "/nowhere",
        "MILLRACE_CACHE_HOST": "0.0.0.0",
    }

    assert explain_service(load_topology(), "cache", environ)["host"].value == "0.0.0.0"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MILLRACE_CACHE_SERVICE_HOTS", "10.0.0.7"),
        ("MILLRACE_CACHE_SERVICE_HOST", "not an address"),
        ("MILLRACE_CACHE_PROT", "tcp://10.0.0.7:50062"),
        ("MILLRACE_CACHE_PORT", "many"),
        ("MILLRACE_CACHE_PORT_50062_TCP_ADR", "10.0.0.7"),
    ],
)
def test_a_typing_error_is_still_one(name: str, value: str) -> None:
    assert not is_service_link(name, value)
    with pytest.raises(ConfigError, match=name):
        explain_service(load_topology(), "cache", {"MILLRACE_HOME": "/nowhere", name: value})


@pytest.mark.parametrize("name", ["MILLRACE_PROT", "MILLRACE_WORKR_DTYPE"])
def test_a_suggestion_is_a_whole_name(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_variables({name: "1"})

    assert not caught.value.message.endswith("_?")
