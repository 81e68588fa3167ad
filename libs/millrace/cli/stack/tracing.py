"""Where the spans of a stack go: kept here, sent on, sent elsewhere only, or nowhere."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from millrace.config.home import Home
from millrace.telemetry.names import ATTR_STACK_ID
from millrace.telemetry.otlp_settings import PREFIX, read_export_settings, why_off

COLLECTOR = "collector"


@dataclass(frozen=True, slots=True)
class Tracing:
    """`note` is for the user; empty if there is nothing that he could not expect.

    With `has_collector` the services send to the stack's own collector and to nobody else, and only
    the collector gets the variables of the user's backend, which may hold secrets.
    """

    has_collector: bool = True
    note: str = ""
    services: Mapping[str, str] = field(default_factory=dict)
    collector: Mapping[str, str] = field(default_factory=dict, repr=False)

    def environ_of(self, name: str, collector_url: str) -> dict[str, str]:
        """The variables of one process."""
        if name == COLLECTOR:
            return dict(self.collector)
        if not self.has_collector:
            return dict(self.services)
        return {**self.services, f"{PREFIX}ENDPOINT": collector_url}


def plan_tracing(environ: Mapping[str, str], home: Home, *, is_kept: bool) -> Tracing:
    """From the user's OTEL_* variables. Raises `ConfigError` for what cannot be followed."""
    settings = read_export_settings(environ)
    resource = {"OTEL_RESOURCE_ATTRIBUTES": _resource_attributes(environ, home)}
    if reason := why_off(environ):
        return Tracing(has_collector=False, note=f"no traces are made: {reason}")
    if not is_kept:
        if settings is None:
            return Tracing(has_collector=False, services={"OTEL_SDK_DISABLED": "true"})
        note = f"traces go to {settings.endpoint} alone: --no-telemetry"
        return Tracing(has_collector=False, note=note, services=resource)
    theirs = {name: value for name, value in environ.items() if name.startswith(PREFIX)}
    services = {**resource, **dict.fromkeys(theirs, "")}
    if settings is None:
        return Tracing(services=services)
    return Tracing(
        note=f"traces are kept here and sent on to {settings.endpoint}",
        services=services,
        collector={"MILLRACE_COLLECTOR_FORWARD_OTLP": "true"},
    )


def stack_id(home: Home) -> str:
    """The same for every start of one home on one machine, another one for every other."""
    place = f"{socket.gethostname()}:".encode() + os.fsencode(home.root)
    return hashlib.blake2b(place, digest_size=4).hexdigest()


def _resource_attributes(environ: Mapping[str, str], home: Home) -> str:
    given = environ.get("OTEL_RESOURCE_ATTRIBUTES", "").strip().rstrip(",")
    return ",".join(filter(None, (given, f"{ATTR_STACK_ID}={stack_id(home)}")))
