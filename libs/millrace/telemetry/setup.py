"""Telemetry of one service process: the tracer provider and its exporter.

Export is on iff an OTLP endpoint is configured; OTEL_* variables keep their meaning (sampler,
resource attributes, limits, batches, exporter, OTEL_TRACES_EXPORTER, OTEL_SDK_DISABLED). Without an
endpoint spans still have ids, for replies and logs, but nothing is recorded.
"""

from __future__ import annotations

import os
import threading
import uuid
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

from .exporter import CountingProcessor, GuardedExporter, create_exporter
from .logs import configure_logging
from .names import SERVICE_NAMESPACE
from .otlp_settings import read_export_settings

__all__ = ["Telemetry", "configure_logging", "create_resource", "start_telemetry"]

SHUTDOWN_S = 2.0
# A step links to every member; the SDK's own limit of 128 would cut large batches.
MAX_LINKS = 1024
# About 3 s of spans at 100 requests/s.
QUEUE_SPANS = 4096
# Short bursts of encoding, so that the event loop is not held up for long.
BATCH_SPANS = 256
BATCH_DELAY_MS = 1000


@dataclass(slots=True)
class Telemetry:
    """What `start_telemetry` started; `exporter` is None where nothing is exported."""

    service: str
    provider: TracerProvider | None
    exporter: GuardedExporter | None

    @property
    def loses_spans(self) -> bool:
        """True if spans are to be exported and nobody has taken the last ones."""
        return self.exporter is not None and self.exporter.is_failing

    def shutdown(self, timeout_s: float = SHUTDOWN_S) -> None:
        """Send what is left, for at most `timeout_s`; safe to call twice."""
        provider, self.provider = self.provider, None
        if provider is None:
            return
        flusher = threading.Thread(target=provider.shutdown, name="telemetry-shutdown", daemon=True)
        flusher.start()
        flusher.join(timeout_s)
        if flusher.is_alive() and self.exporter is not None:
            self.exporter.shutdown()


def start_telemetry(service: str) -> Telemetry:
    """Set the process's tracer provider and its log lines; call once, in the service's `main`.

    Must run after any fork, since the batch processor owns a thread. Raises ConfigError for a bad
    log level and for OTEL_* variables that cannot be followed; a dead endpoint never raises.
    """
    configure_logging(service)
    settings = read_export_settings(os.environ)
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return Telemetry(service, None, None)
    exporter = None if settings is None else create_exporter(settings)
    provider = TracerProvider(
        sampler=None if exporter else ALWAYS_OFF,
        resource=create_resource(service),
        shutdown_on_exit=False,
        span_limits=_span_limits(),
    )
    if exporter is not None:
        provider.add_span_processor(
            CountingProcessor(
                exporter,
                max_queue_size=_default("OTEL_BSP_MAX_QUEUE_SIZE", QUEUE_SPANS),
                max_export_batch_size=_default("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", BATCH_SPANS),
                schedule_delay_millis=_default("OTEL_BSP_SCHEDULE_DELAY", BATCH_DELAY_MS),
            )
        )
    trace.set_tracer_provider(provider)
    return Telemetry(service, provider, exporter)


def create_resource(service: str) -> Resource:
    """The process as traces name it; OTEL_RESOURCE_ATTRIBUTES adds to it."""
    try:
        release = version("millrace")
    except PackageNotFoundError:
        release = "unknown"
    return Resource.create(
        {
            "service.name": service,
            "service.namespace": SERVICE_NAMESPACE,
            "service.version": release,
            "service.instance.id": uuid.uuid4().hex,
            "process.pid": os.getpid(),
        }
    )


def _span_limits() -> SpanLimits:
    if os.environ.get("OTEL_SPAN_LINK_COUNT_LIMIT"):
        return SpanLimits()
    return SpanLimits(max_links=MAX_LINKS)


def _default(variable: str, ours: int) -> int | None:
    """Ours, or None to let the SDK read the variable itself."""
    return None if os.environ.get(variable) else ours
