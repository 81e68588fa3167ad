"""Settings of `millrace bus`; each is a flag, a variable MILLRACE_BUS_* and a key of [bus]."""

from __future__ import annotations

from dataclasses import dataclass

from millrace.config.loader import setting
from millrace.core.url import NatsUrl


@dataclass(frozen=True)
class BusConfig:
    """Which message bus is prepared."""

    nats_url: NatsUrl | None = setting(
        None, help="NATS server to prepare", unset="that of the running stack"
    )
