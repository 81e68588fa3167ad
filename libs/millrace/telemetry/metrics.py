"""A service's metrics page: the registry, trace exemplars, the page and its small server."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from opentelemetry import trace
from opentelemetry.trace import Span
from prometheus_client import (
    CollectorRegistry,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from millrace.core.errors import ConfigError

from . import names
from .exporter import GuardedExporter
from .http_server import HttpRequest, HttpResponse, HttpServer
from .metric_sets import (
    BusMetrics,
    CacheMetrics,
    GatewayMetrics,
    SchedulerMetrics,
    TokenizerMetrics,
    WorkerMetrics,
)
from .setup import Telemetry

__all__ = [
    "BusMetrics",
    "CacheMetrics",
    "GatewayMetrics",
    "SchedulerMetrics",
    "TokenizerMetrics",
    "WorkerMetrics",
    "create_registry",
    "observe",
    "render",
    "start_metrics_server",
]

# A second series beside each counter and histogram, which nobody asks for.
disable_created_metrics()  # type: ignore[no-untyped-call]


def create_registry(service: str, telemetry: Telemetry | None = None) -> CollectorRegistry:
    """A registry with the metrics of the process itself, of the build, and of its span export."""
    registry = CollectorRegistry(auto_describe=True)
    ProcessCollector(registry=registry)
    build = Info(names.METRIC_BUILD, "Release and service.", registry=registry)
    build.info({"version": release(), "service": service})
    if telemetry is not None and telemetry.exporter is not None:
        registry.register(_ExportCollector(telemetry.exporter))
    return registry


def release() -> str:
    """The version that is installed."""
    try:
        return version("millrace")
    except PackageNotFoundError:
        return "unknown"


class _ExportCollector(Collector):
    """Reads the counts of the exporter when it is asked."""

    def __init__(self, exporter: GuardedExporter) -> None:
        self._exporter = exporter

    def collect(self) -> Iterable[Metric]:
        """The two counters."""
        exported = CounterMetricFamily(
            names.METRIC_SPANS_EXPORTED,
            "Spans that the endpoint took.",
            self._exporter.num_exported,
        )
        dropped = CounterMetricFamily(
            names.METRIC_SPANS_DROPPED,
            "Spans lost, the endpoint being away or slow.",
            self._exporter.num_dropped,
        )
        return (exported, dropped)


def observe(histogram: Histogram, value: float, span: Span | None = None) -> None:
    """Observe, with the trace id of `span` or of the current one as exemplar if it is sampled."""
    context = (trace.get_current_span() if span is None else span).get_span_context()
    if context.is_valid and context.trace_flags.sampled:
        histogram.observe(value, {"trace_id": f"{context.trace_id:032x}"})
    else:
        histogram.observe(value)


def render(registry: CollectorRegistry, accept_header: str) -> tuple[bytes, str]:
    """Exposition text and its content type; exemplars only where OpenMetrics is accepted."""
    encoder, content_type = choose_encoder(accept_header)
    return encoder(registry), content_type


async def start_metrics_server(registry: CollectorRegistry, host: str, port: int) -> HttpServer:
    """Serve `GET /metrics`; port 0 takes a free one, see `HttpServer.port`.

    Raises ConfigError if the port is taken.
    """

    async def answer(request: HttpRequest) -> HttpResponse:
        if request.path.partition("?")[0] != "/metrics":
            return HttpResponse(404, b"only /metrics is here\n")
        if request.method not in ("GET", "HEAD"):
            return HttpResponse(405, b"only GET is allowed\n")
        body, content_type = render(registry, request.headers.get("accept", ""))
        return HttpResponse(200, body, content_type)

    server = HttpServer(answer)
    try:
        await server.start(host, port)
    except OSError as error:
        raise ConfigError(
            f"metrics cannot be served on {host}:{port} ({os.strerror(error.errno or 0)}); "
            "stop what listens there, or set another metrics_port",
            field="metrics_port",
        ) from error
    return server
