"""Settings of the tokenizer service."""

from __future__ import annotations

from dataclasses import dataclass

from millrace.config.loader import setting
from millrace.config.values import Host
from millrace.hub.catalog import DEFAULT_MODEL


@dataclass(frozen=True)
class TokenizerConfig:
    """What one tokenizer process is told."""

    host: Host = setting("127.0.0.1", help="address to listen on")
    port: int = setting(0, help="port to listen on", unset="a free one")
    models: tuple[str, ...] = setting(
        (DEFAULT_MODEL,), help="models to serve: names, aliases or folders"
    )
    metrics_port: int = setting(0, help="port of the Prometheus metrics", unset="off")
