"""Which names this gateway answers to.

A page of a foreign name that resolves to 127.0.0.1 (DNS rebinding) is of the same origin as the
server that it asks, so no rule about origins keeps it out: the Host field names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from millrace.core.errors import ConfigError

ANY = "*"
_NAME = re.compile(r"[\w.\-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class AllowedHosts:
    """`names` None: every name. Loopback names and addresses are always allowed: nobody can make
    them resolve to something else.
    """

    names: frozenset[str] | None = None

    @classmethod
    def of(cls, entries: Iterable[str], *, is_loopback: bool) -> AllowedHosts:
        """As the setting names them; without any, names are checked on a loopback address only.

        Raises `ConfigError` for what is no name.
        """
        names = frozenset(entry.lower() for entry in entries)
        for name in names - {ANY}:
            if not _NAME.fullmatch(name):
                raise ConfigError(
                    f"allowed_hosts: {name!r} is no host name; write it without scheme and port, "
                    f"or {ANY} for any",
                    field="allowed_hosts",
                )
        is_open = ANY in names or not (names or is_loopback)
        return cls(None if is_open else names)

    def allows(self, host: str) -> bool:
        """True for a Host field that names us; `host` is well-formed."""
        if self.names is None:
            return True
        name = _name(host)
        return name in self.names or name in ("", "localhost") or name.endswith(".localhost")


def _name(host: str) -> str:
    """Without port; "" for an address."""
    if host.startswith("["):
        return ""
    name = host.partition(":")[0].rstrip(".").lower()
    try:
        ip_address(name)
    except ValueError:
        return name
    return ""
