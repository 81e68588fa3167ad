"""The address by which others reach a service: given, bound, or the one that faces the bus."""

from __future__ import annotations

import socket

import pytest

from millrace.core.errors import ConfigError
from millrace.core.url import NatsUrl
from millrace.rpc.advertised import advertised_address


@pytest.mark.parametrize(
    ("given", "bound", "bus", "expected"),
    [
        ("worker-7:50064", "0.0.0.0:50064", "nats://127.0.0.1:4222", "worker-7:50064"),
        ("", "127.0.0.1:50064", "nats://no.such.host.invalid", "127.0.0.1:50064"),
        ("", "10.1.2.3:50064", "nats://127.0.0.1", "10.1.2.3:50064"),
        ("", "worker.local:50064", "nats://127.0.0.1", "worker.local:50064"),
        ("", "[::1]:50064", "nats://127.0.0.1", "[::1]:50064"),
        ("", "0.0.0.0:50064", "nats://127.0.0.1:4222", "127.0.0.1:50064"),
        ("", "0.0.0.0:7", "nats://127.0.0.2", "127.0.0.1:7"),
        ("", "[::]:50064", "nats://127.0.0.1:4222", "127.0.0.1:50064"),
    ],
)
async def test_service_advertises_what_it_is_given_or_what_faces_the_bus(
    given: str, bound: str, bus: str, expected: str
) -> None:
    assert await advertised_address(given, bound, NatsUrl(bus)) == expected


async def test_every_replica_finds_its_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose route to the bus begins at another address than loopback."""

    class Probe(socket.socket):
        def connect(self, target: object) -> None:
            assert target == ("10.89.0.2", 4222)

        def getsockname(self) -> tuple[str, int]:
            return ("10.89.0.7", 40000)

    def resolve(host: str, port: int, **kind: int) -> list[tuple[object, ...]]:
        assert host == "nats"
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("10.89.0.2", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "socket", Probe)

    bus = NatsUrl("nats://nats:4222")
    assert await advertised_address("", "0.0.0.0:50064", bus) == "10.89.0.7:50064"


@pytest.mark.parametrize("bus", ["nats://user:secret@no.such.host.invalid", "nats://[::1]:4222"])
async def test_no_address_towards_the_bus_is_an_error_that_names_the_setting(bus: str) -> None:
    with pytest.raises(ConfigError, match="set advertise_address") as caught:
        await advertised_address("", "0.0.0.0:50064", NatsUrl(bus))

    assert caught.value.field == "advertise_address"
    assert "secret" not in caught.value.message
