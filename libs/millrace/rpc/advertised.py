"""The address that a service tells others of itself."""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address

from millrace.core.address import join_host_port, split_host_port
from millrace.core.errors import ConfigError
from millrace.core.url import NatsUrl

# A datagram socket that is connected sends nothing; it only has its route looked up.
_ANY_PORT = 4222
LOOKUP_TIMEOUT_S = 10.0


async def advertised_address(given: str, bound: str, bus: NatsUrl) -> str:
    """host:port by which the others on this bus reach a service that listens on `bound`.

    That is `given` if it is not empty, else `bound`; if that stands for every address of this
    machine, the one from which the bus is reached, because so are the others. Replicas in
    containers each find their own. Raises `ConfigError` where none is found.
    """
    if given:
        return given
    host, port = split_host_port(bound)
    if not _is_every_address(host):
        return bound
    try:
        async with asyncio.timeout(LOOKUP_TIMEOUT_S):
            own = await asyncio.to_thread(_address_towards, bus, host)
    except (OSError, TimeoutError) as error:
        raise ConfigError(
            f"listens on {bound} and finds no address of its own from which {bus.address} is "
            f"reached ({error or 'no answer'}); set advertise_address",
            field="advertise_address",
        ) from error
    return join_host_port(own, port)


def _is_every_address(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False


def _address_towards(bus: NatsUrl, listening: str) -> str:
    # Who listens on 0.0.0.0 is not reached by IPv6; who listens on :: is reached by both.
    family = socket.AF_UNSPEC if ":" in listening else socket.AF_INET
    found = socket.getaddrinfo(
        bus.host, bus.port or _ANY_PORT, family=family, type=socket.SOCK_DGRAM
    )
    failure = OSError("no address")
    for kind, _, _, _, target in found:
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(target)
                return str(probe.getsockname()[0])
            except OSError as error:
                failure = error
    raise failure
