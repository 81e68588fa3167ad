"""Settings of the span collector."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from millrace.config.home import millrace_home
from millrace.config.loader import setting
from millrace.telemetry.store import STORE_FILE
from millrace.telemetry.trace_writer import MAX_REQUESTS, MAX_STEPS


def _default_store() -> Path:
    return millrace_home().run / STORE_FILE


@dataclass(frozen=True)
class CollectorConfig:
    """Receives spans by OTLP/HTTP on loopback and keeps those of the last requests."""

    host: str = setting("127.0.0.1", help="address to listen on; loopback only")
    port: int = setting(4318, help="port to listen on; 0 takes a free one")
    store: Path = setting(default_factory=_default_store, help="file of the span store")
    max_requests: int = setting(MAX_REQUESTS, help="requests whose spans are kept")
    max_steps: int = setting(MAX_STEPS, help="sampled batch steps that are kept")
    forward_url: str = setting(
        "http://127.0.0.1:6006", help="tracing UI to forward to while it is up; empty: none"
    )
    max_body_bytes: int = setting(16 << 20, help="largest export request", unit="bytes")
