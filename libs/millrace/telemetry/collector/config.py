"""Settings of the span collector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from millrace.config.loader import setting
from millrace.config.values import Host
from millrace.core.url import HttpUrl
from millrace.telemetry.store import STORE_FILE
from millrace.telemetry.trace_writer import MAX_REQUESTS, MAX_STEPS


@dataclass(frozen=True)
class CollectorConfig:
    """Receives spans by OTLP/HTTP on loopback and keeps those of the last requests."""

    host: Host = setting("127.0.0.1", help="loopback address to listen on")
    insecure_bind: bool = setting(
        False, help="allow a host beyond loopback: whoever reaches it can write spans"
    )
    port: int = setting(4318, help="port to listen on", unset="a free one")
    store: Path | None = setting(
        None, help="file of the span store", unset=f"run/{STORE_FILE} in MILLRACE_HOME"
    )
    max_requests: int = setting(MAX_REQUESTS, help="requests whose spans are kept")
    max_steps: int = setting(MAX_STEPS, help="sampled batch steps that are kept")
    forward_url: HttpUrl | None = setting(
        None,
        help="tracing UI to forward to while it is up",
        unset="the one that the verb `trace-ui` has started for the same MILLRACE_HOME",
    )
    forward_otlp: bool = setting(
        False, help="send the spans on to where the OTEL_EXPORTER_OTLP_* variables say"
    )
    max_body_bytes: int = setting(16 << 20, help="largest export request", unit="bytes")
