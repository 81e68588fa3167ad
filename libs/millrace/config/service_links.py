"""The variables by which Kubernetes tells a container of the Services of its namespace.

For a Service `millrace-cache` a pod gets MILLRACE_CACHE_SERVICE_HOST, MILLRACE_CACHE_PORT and more
(Kubernetes documentation, "Accessing the Service"). They look like settings of ours and are none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_address

_ENDPOINT = re.compile(r"(?:tcp|udp|sctp)://\S+:\d+", re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,5}")
_PROTOCOL = re.compile(r"tcp|udp|sctp", re.IGNORECASE)


def without_service_links(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that somebody may have meant as settings."""
    return {name: value for name, value in environ.items() if not is_service_link(name, value)}


def is_service_link(name: str, value: str) -> bool:
    """True for a variable whose name and value both are those of a service link."""
    return any(pattern.fullmatch(name) and is_value(value) for pattern, is_value in _LINKS)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


_LINKS = (
    (re.compile(r"\w+_SERVICE_HOST"), _is_address),
    (re.compile(r"\w+_SERVICE_PORT(?:_\w+)?"), _NUMBER.fullmatch),
    (re.compile(r"\w+_PORT"), _ENDPOINT.fullmatch),
    (re.compile(r"\w+_PORT_\d+_(?:TCP|UDP|SCTP)"), _ENDPOINT.fullmatch),
    (re.compile(r"\w+_PORT_\d+_(?:TCP|UDP|SCTP)_PROTO"), _PROTOCOL.fullmatch),
    (re.compile(r"\w+_PORT_\d+_(?:TCP|UDP|SCTP)_PORT"), _NUMBER.fullmatch),
    (re.compile(r"\w+_PORT_\d+_(?:TCP|UDP|SCTP)_ADDR"), _is_address),
)
