"""Proxies that the environment names, and whether they stand between a client and this machine."""

from __future__ import annotations

from collections.abc import Mapping

from millrace.core.secret import redacted

# gRPC reads the lower-case names alone; curl and the OpenAI client read most of both.
_NAMES = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")
_LOOPBACK = ("127.0.0.1", "localhost")


def named_proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """Variable and proxy, without passwords."""
    names = [spelled for name in _NAMES for spelled in (name, name.upper())]
    return {name: redacted(environ[name]) for name in names if environ.get(name)}


def hides_loopback(environ: Mapping[str, str]) -> bool:
    """True if clients that follow the proxy variables would not reach this machine's own ports."""
    if not named_proxies(environ):
        return False
    exempt = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    entries = {entry.strip() for entry in exempt.split(",")}
    return "*" not in entries and not entries.issuperset(_LOOPBACK)
