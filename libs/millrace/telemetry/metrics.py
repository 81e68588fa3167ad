"""Prometheus metrics of each service, in a registry of the caller's, with trace exemplars.

Names follow vLLM's, with our prefix, so that its dashboards need only a rename. Labels hold names
from closed sets (served model, reason, kind): never a request id, a tenant or a text.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from opentelemetry import trace
from opentelemetry.trace import Span
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from . import names
from .exporter import GuardedExporter
from .http_server import HttpRequest, HttpResponse, HttpServer
from .setup import Telemetry

SECONDS_FAST = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0),
)
SECONDS_SLOW = (
    *(0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(15.0, 20.0, 30.0, 40.0, 60.0, 120.0, 240.0, 480.0, 600.0),
)
ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024)
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

MODEL = ("model_name",)


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
    """Serve `GET /metrics`; port 0 takes a free one, see `HttpServer.port`. Raises OSError."""

    async def answer(request: HttpRequest) -> HttpResponse:
        if request.path.partition("?")[0] != "/metrics":
            return HttpResponse(404, b"only /metrics is here\n")
        if request.method not in ("GET", "HEAD"):
            return HttpResponse(405, b"only GET is allowed\n")
        body, content_type = render(registry, request.headers.get("accept", ""))
        return HttpResponse(200, body, content_type)

    server = HttpServer(answer)
    await server.start(host, port)
    return server


class GatewayMetrics:
    """Metrics at the public edge: what clients feel."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def histogram(name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, help_text, MODEL, buckets=buckets, registry=registry)

        def counter(name: str, help_text: str, *labels: str) -> Counter:
            return Counter(name, help_text, (*MODEL, *labels), registry=registry)

        self.time_to_first_token = histogram(
            names.METRIC_TIME_TO_FIRST_TOKEN, "Arrival to first token out, seconds.", SECONDS_SLOW
        )
        self.inter_token_latency = histogram(
            names.METRIC_INTER_TOKEN_LATENCY, "Gap between two tokens, seconds.", SECONDS_FAST
        )
        self.time_per_output_token = histogram(
            names.METRIC_TIME_PER_OUTPUT_TOKEN,
            "Mean gap of a request after its first token, seconds.",
            SECONDS_FAST,
        )
        self.e2e_request_latency = histogram(
            names.METRIC_E2E_REQUEST_LATENCY, "Arrival to last token out, seconds.", SECONDS_SLOW
        )
        self.client_blocked = histogram(
            names.METRIC_CLIENT_BLOCKED,
            "Time with text ready that the client did not take, per request, seconds.",
            SECONDS_SLOW,
        )
        self.prompt_tokens = counter(names.METRIC_PROMPT_TOKENS, "Prompt tokens received.")
        self.generation_tokens = counter(names.METRIC_GENERATION_TOKENS, "Tokens answered.")
        self.request_success = counter(
            names.METRIC_REQUEST_SUCCESS, "Requests answered to their end.", "finished_reason"
        )
        self.request_failure = counter(
            names.METRIC_REQUEST_FAILURE, "Requests that ended with an error.", "reason"
        )
        self.request_cancelled = counter(
            names.METRIC_REQUEST_CANCELLED,
            "Requests ended from this side before their last token, by CancelReason.",
            "reason",
        )
        self.response_cache = counter(
            names.METRIC_RESPONSE_CACHE, "Response cache look-ups.", "result"
        )
        self.requests_in_flight = Gauge(
            names.METRIC_REQUESTS_IN_FLIGHT, "Requests being answered.", MODEL, registry=registry
        )
        self.ignored_fields = Counter(
            names.METRIC_IGNORED_FIELDS,
            "Fields of requests that were not taken into account: harmless, or unknown.",
            ("kind",),
            registry=registry,
        )
        for kind in ("harmless", "unknown"):
            self.ignored_fields.labels(kind)
        self.stale_frames_dropped = Counter(
            names.METRIC_STALE_FRAMES_DROPPED,
            "Token deltas of an older attempt, or double.",
            registry=registry,
        )


class SchedulerMetrics:
    """Metrics of the queues, the blocks and the batches."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, help_text: str) -> Gauge:
            return Gauge(name, help_text, registry=registry)

        def counter(name: str, help_text: str) -> Counter:
            return Counter(name, help_text, registry=registry)

        def histogram(name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(name, help_text, buckets=buckets, registry=registry)

        self.num_requests_running = gauge(
            names.METRIC_NUM_REQUESTS_RUNNING, "Sequences that have a row."
        )
        self.num_requests_waiting = gauge(
            names.METRIC_NUM_REQUESTS_WAITING, "Sequences that wait for a row."
        )
        self.kv_cache_usage = gauge(names.METRIC_KV_CACHE_USAGE, "KV blocks in use, 0 to 1.")
        self.num_workers = gauge(names.METRIC_NUM_WORKERS, "Workers attached.")
        self.nats_ack_pending = gauge(
            names.METRIC_NATS_ACK_PENDING, "Messages fetched and not yet acknowledged."
        )
        self.request_queue_time = histogram(
            names.METRIC_REQUEST_QUEUE_TIME, "Publish to first row, seconds.", SECONDS_SLOW
        )
        self.batch_size = histogram(names.METRIC_BATCH_SIZE, "Rows in a step.", ROWS)
        self.batch_tokens = histogram(names.METRIC_BATCH_TOKENS, "Tokens in a step.", TOKENS)
        self.schedule = histogram(
            names.METRIC_SCHEDULE, "Time to decide on a plan, seconds.", SECONDS_FAST
        )
        self.round_trip = histogram(
            names.METRIC_ROUND_TRIP, "Plan sent to its result, seconds.", SECONDS_FAST
        )
        self.preemptions = counter(names.METRIC_PREEMPTIONS, "Rows taken back for want of blocks.")
        self.prefix_cache_queries = counter(
            names.METRIC_PREFIX_CACHE_QUERIES, "Prompt tokens looked up in the prefix cache."
        )
        self.prefix_cache_hits = counter(
            names.METRIC_PREFIX_CACHE_HITS, "Prompt tokens found in the prefix cache."
        )
        self.nats_redelivered = counter(
            names.METRIC_NATS_REDELIVERED, "Messages delivered more than once."
        )
        self.request_aborted = Counter(
            names.METRIC_REQUEST_ABORTED,
            "Requests ended here before their last token, by CancelReason.",
            ("reason",),
            registry=registry,
        )
        self.resumed_requests = counter(
            names.METRIC_RESUMED_REQUESTS, "Requests taken up again with their tokens."
        )
        self.dlq = counter(
            names.METRIC_DLQ, "Requests that killed workers, and unreadable messages."
        )


class WorkerMetrics:
    """Metrics of the engine's steps."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, help_text: str) -> Gauge:
            return Gauge(name, help_text, registry=registry)

        def counter(name: str, help_text: str) -> Counter:
            return Counter(name, help_text, registry=registry)

        def seconds(name: str, help_text: str) -> Histogram:
            return Histogram(name, help_text, buckets=SECONDS_FAST, registry=registry)

        self.step = seconds(names.METRIC_STEP, "Whole step, seconds.")
        self.forward = seconds(names.METRIC_FORWARD, "Forward pass of a step, seconds.")
        self.sample = seconds(names.METRIC_SAMPLE, "Sampling of a step, seconds.")
        self.tokens = Counter(
            names.METRIC_ENGINE_TOKENS,
            "Tokens executed, by kind: prefill or decode.",
            ("kind",),
            registry=registry,
        )
        self.lease_steps = counter(names.METRIC_LEASE_STEPS, "Steps run ahead of the next plan.")
        self.starved_rows = counter(
            names.METRIC_STARVED_ROWS, "Rows that missed a step for want of a block."
        )
        self.live_rows = gauge(names.METRIC_LIVE_ROWS, "Rows taken.")
        self.kv_cache_usage = gauge(names.METRIC_KV_CACHE_USAGE, "KV blocks in use, 0 to 1.")
        self.resident_bytes = gauge(names.METRIC_RESIDENT_BYTES, "Resident memory, bytes.")


class TokenizerMetrics:
    """Metrics of encode and decode."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def seconds(name: str, help_text: str) -> Histogram:
            return Histogram(name, help_text, buckets=SECONDS_FAST, registry=registry)

        self.encode = seconds(names.METRIC_ENCODE, "One Encode call, seconds.")
        self.detokenize = seconds(names.METRIC_DETOKENIZE, "One Decode message, seconds.")
        self.encoded_tokens = Counter(
            names.METRIC_ENCODED_TOKENS, "Token ids made from text.", registry=registry
        )
        self.detokenized_tokens = Counter(
            names.METRIC_DETOKENIZED_TOKENS, "Token ids turned into text.", registry=registry
        )


class CacheMetrics:
    """Metrics of the response cache."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.operation = Histogram(
            names.METRIC_CACHE_OPERATION,
            "One call to Redis, by operation: look_up or store; seconds.",
            ("operation",),
            buckets=SECONDS_FAST,
            registry=registry,
        )
        self.results = Counter(
            names.METRIC_CACHE_RESULTS,
            "Calls by result: hit, miss, stored, refused or failed.",
            ("result",),
            registry=registry,
        )
        self.connected = Gauge(
            names.METRIC_CACHE_CONNECTED, "1 while Redis answers.", registry=registry
        )
