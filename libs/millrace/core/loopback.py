"""Tells this machine from the outside."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

from .address import bare_host


def is_loopback(host: str) -> bool:
    """True if only this machine can reach `host`, a name or an address, with brackets or not."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        address = ip_address(bare_host(host))
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback
