"""The Prometheus metrics of each service, each set in a registry of the caller's.

Names follow vLLM's, with our prefix, so that its dashboards need only a rename. Labels hold names
from closed sets (served model, worker, reason, kind): never a request id, a tenant or a text. Every
combination that can be known beforehand stands at 0 from the start: of a counter that appears with
its first event, `rate()` does not see that event. docs/metrics.md is generated from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from millrace.core.cancellation import CancelReason
from millrace.core.errors import error_classes
from millrace.core.loss import Loss
from millrace.core.tokens import FinishReason

from . import names

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
# Of a request that ended before its model was known.
UNKNOWN_MODEL = "unknown"
# How an answer ends; what ends with an error is none.
FINISH_REASONS = tuple(
    reason.name.lower() for reason in (FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT)
)
CACHE_LOOKUPS = ("hit", "miss", "refresh")
# What the alert rules look at, and what every route answers sooner or later.
HTTP_CODES = ("200", "400", "404", "413", "415", "429", "499", "500", "503", "504")
GRPC_CODES = (
    *("OK", "CANCELLED", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "UNAVAILABLE"),
    *("DEADLINE_EXCEEDED", "INTERNAL"),
)


class _Declare:
    """Makes the metrics of one process; `fixed` are labels that all of its series carry."""

    def __init__(self, registry: CollectorRegistry, **fixed: str) -> None:
        self._registry = registry
        self._fixed = fixed

    def gauge(self, name: str, help_text: str) -> Gauge:
        made = Gauge(name, help_text, tuple(self._fixed), registry=self._registry)
        return made.labels(**self._fixed) if self._fixed else made

    def counter(self, name: str, help_text: str) -> Counter:
        made = Counter(name, help_text, tuple(self._fixed), registry=self._registry)
        return made.labels(**self._fixed) if self._fixed else made

    def histogram(self, name: str, help_text: str, buckets: Sequence[float]) -> Histogram:
        made = Histogram(
            name, help_text, tuple(self._fixed), buckets=buckets, registry=self._registry
        )
        return made.labels(**self._fixed) if self._fixed else made

    def counters(self, name: str, help_text: str, label: str, values: Iterable[str]) -> Counters:
        made = Counter(name, help_text, (*self._fixed, label), registry=self._registry)
        return Counters(made, self._fixed, label, values)

    def gauges(self, name: str, help_text: str, label: str) -> Gauges:
        return Gauges(
            Gauge(name, help_text, (*self._fixed, label), registry=self._registry),
            tuple(self._fixed.values()),
        )


class Counters:
    """A counter by one label beside the fixed ones; its values are a closed set."""

    def __init__(
        self, counter: Counter, fixed: dict[str, str], label: str, values: Iterable[str]
    ) -> None:
        self._children = {value: counter.labels(**fixed, **{label: value}) for value in values}

    def labels(self, value: str) -> Counter:
        """The one of that value. Raises KeyError for a value that was not declared."""
        return self._children[value]


class Gauges:
    """A gauge by one label beside the fixed ones, with values that come and go."""

    def __init__(self, gauge: Gauge, fixed: tuple[str, ...]) -> None:
        self._gauge = gauge
        self._fixed = fixed
        self._known: set[str] = set()

    def set_all(self, values: dict[str, float]) -> None:
        """These and no others: a worker that has gone leaves no series behind."""
        for gone in self._known - values.keys():
            self._gauge.remove(*self._fixed, gone)
        for key, value in values.items():
            self._gauge.labels(*self._fixed, key).set(value)
        self._known = set(values)


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
        self.prompt_tokens = counter(
            names.METRIC_PROMPT_TOKENS, "Prompt tokens of accepted requests."
        )
        self.generation_tokens = counter(
            names.METRIC_GENERATION_TOKENS, "Tokens of requests that were answered to their end."
        )
        self.request_success = counter(
            names.METRIC_REQUEST_SUCCESS,
            "Requests answered to their end, by the finish reason of the first choice.",
            "finished_reason",
        )
        self.request_failure = counter(
            names.METRIC_REQUEST_FAILURE,
            "Requests that ended with an error once they were understood, by its reason.",
            "reason",
        )
        self.request_cancelled = counter(
            names.METRIC_REQUEST_CANCELLED,
            "Requests that the gateway ended before their last token, by reason.",
            "reason",
        )
        self.response_cache = counter(
            names.METRIC_RESPONSE_CACHE,
            "Look-ups of requests that asked for the response cache, by result.",
            "result",
        )
        self.http_requests = Counter(
            names.METRIC_HTTP_REQUESTS,
            "HTTP requests of any kind, refused ones and probes too; 499: the client left first.",
            ("route", "method", "code"),
            registry=registry,
        )
        self.grpc_requests = Counter(
            names.METRIC_GRPC_REQUESTS,
            "gRPC calls of any kind, refused ones and probes too.",
            ("method", "code"),
            registry=registry,
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
            "Token deltas that came twice, or from a scheduler that is no longer in charge.",
            registry=registry,
        )
        self._models: set[str] = set()
        self.add_model(UNKNOWN_MODEL)

    def add_model(self, model: str) -> None:
        """The series of a model stand at 0 from now on; safe to repeat."""
        if model in self._models:
            return
        self._models.add(model)
        for reason in error_classes():
            self.request_failure.labels(model, reason)
        if model == UNKNOWN_MODEL:
            return
        for metric in (
            *(self.time_to_first_token, self.inter_token_latency, self.time_per_output_token),
            *(self.e2e_request_latency, self.client_blocked, self.requests_in_flight),
            *(self.prompt_tokens, self.generation_tokens),
        ):
            metric.labels(model)
        for counter, values in (
            (self.request_success, FINISH_REASONS),
            (self.request_cancelled, tuple(CancelReason)),
            (self.response_cache, CACHE_LOOKUPS),
        ):
            for value in values:
                counter.labels(model, value)

    def add_routes(self, routes: Iterable[tuple[str, str]]) -> None:
        """The counts of (route, method) stand at 0."""
        for (route, method), code in product(routes, HTTP_CODES):
            self.http_requests.labels(route, method, code)

    def add_methods(self, methods: Iterable[str]) -> None:
        """The counts of gRPC methods stand at 0."""
        for method, code in product(methods, GRPC_CODES):
            self.grpc_requests.labels(method, code)


class SchedulerMetrics:
    """Metrics of the queues, the blocks and the batches of one model."""

    def __init__(self, registry: CollectorRegistry, model_name: str = "") -> None:
        make = _Declare(registry, model_name=model_name)
        self.num_requests_running = make.gauge(
            names.METRIC_NUM_REQUESTS_RUNNING, "Sequences that have a row."
        )
        self.num_requests_waiting = make.gauge(
            names.METRIC_NUM_REQUESTS_WAITING, "Sequences that wait for a row."
        )
        self.kv_cache_usage = make.gauges(
            names.METRIC_KV_CACHE_USAGE,
            "Share of a worker's KV blocks in use, from 0 to 1 (the name is vLLM's).",
            "worker_id",
        )
        self.num_workers = make.gauge(names.METRIC_NUM_WORKERS, "Workers that take requests.")
        self.nats_ack_pending = make.gauge(
            names.METRIC_NATS_ACK_PENDING, "Messages that this scheduler holds."
        )
        self.nats_pending = make.gauges(
            names.METRIC_NATS_PENDING,
            "Messages on the intake queue that no scheduler has fetched, by priority.",
            "priority",
        )
        self.request_queue_time = make.histogram(
            names.METRIC_REQUEST_QUEUE_TIME, "Publish to first row, seconds.", SECONDS_SLOW
        )
        self.batch_size = make.histogram(
            names.METRIC_BATCH_SIZE, "Rows that decoded in a step.", ROWS
        )
        self.batch_tokens = make.histogram(
            names.METRIC_BATCH_TOKENS, "Tokens in a step, prompts included.", TOKENS
        )
        self.schedule = make.histogram(
            names.METRIC_SCHEDULE, "Time to decide on a plan, seconds.", SECONDS_FAST
        )
        self.round_trip = make.histogram(
            names.METRIC_ROUND_TRIP, "Plan sent to its result, seconds.", SECONDS_FAST
        )
        self.preemptions = make.counter(
            names.METRIC_PREEMPTIONS, "Rows taken back for want of KV blocks."
        )
        self.rows_lost = make.counters(
            names.METRIC_ROWS_LOST,
            "Rows lost by a fault, by reason; their sequences wait again with all tokens.",
            "reason",
            (loss for loss in Loss if loss not in (Loss.BLOCKS, Loss.SCHEDULER_LOST)),
        )
        self.workers_lost = make.counters(
            names.METRIC_WORKERS_LOST,
            "Workers that went away, by reason; worker_left is an orderly end.",
            "reason",
            (Loss.WORKER_LOST, Loss.WORKER_FROZEN, Loss.WORKER_LEFT),
        )
        self.prefix_cache_queries = make.counter(
            names.METRIC_PREFIX_CACHE_QUERIES, "Prompt tokens looked up in the prefix cache."
        )
        self.prefix_cache_hits = make.counter(
            names.METRIC_PREFIX_CACHE_HITS, "Prompt tokens found in the prefix cache."
        )
        self.nats_redelivered = make.counter(
            names.METRIC_NATS_REDELIVERED, "Messages delivered more than once."
        )
        self.request_aborted = make.counters(
            names.METRIC_REQUEST_ABORTED,
            "Requests that the scheduler ended before their last token, by reason.",
            "reason",
            CancelReason,
        )
        self.resumed_requests = make.counter(
            names.METRIC_RESUMED_REQUESTS,
            "Requests taken over with their tokens from another scheduler.",
        )
        self.dlq = make.counter(
            names.METRIC_DLQ,
            "Dead letters: requests that ended several workers or steps, and unreadable messages.",
        )
        # The intake stream is shared by all models.
        stream = _Declare(registry)
        self.nats_stream_messages = stream.gauge(
            names.METRIC_NATS_STREAM_MESSAGES, "Messages in the intake stream."
        )
        self.nats_stream_bytes = stream.gauge(
            names.METRIC_NATS_STREAM_BYTES, "Bytes in the intake stream."
        )
        self.nats_stream_usage = stream.gauge(
            names.METRIC_NATS_STREAM_USAGE,
            "How full the intake stream is, by messages or bytes, from 0 to 1.",
        )


class WorkerMetrics:
    """Metrics of the engine's steps."""

    def __init__(
        self, registry: CollectorRegistry, model_name: str = "", worker_id: str = ""
    ) -> None:
        make = _Declare(registry, model_name=model_name, worker_id=worker_id)
        self.step = make.histogram(names.METRIC_STEP, "Whole step, seconds.", SECONDS_FAST)
        self.forward = make.histogram(
            names.METRIC_FORWARD, "Forward pass of a step, seconds.", SECONDS_FAST
        )
        self.sample = make.histogram(
            names.METRIC_SAMPLE, "Sampling of a step, seconds.", SECONDS_FAST
        )
        self.failed_steps = make.counter(names.METRIC_FAILED_STEPS, "Steps that raised an error.")
        self.tokens = make.counters(
            names.METRIC_ENGINE_TOKENS,
            "Tokens executed, by kind: prefill or decode.",
            "kind",
            ("prefill", "decode"),
        )
        self.lease_steps = make.counter(
            names.METRIC_LEASE_STEPS, "Steps run ahead of the next plan."
        )
        self.starved_rows = make.counter(
            names.METRIC_STARVED_ROWS, "Rows that missed a step for want of a block."
        )
        self.live_rows = make.gauge(names.METRIC_LIVE_ROWS, "Rows taken.")
        self.resident_bytes = make.gauge(names.METRIC_RESIDENT_BYTES, "Resident memory, bytes.")

    def watch(self, num_rows: Callable[[], int], resident_bytes: Callable[[], int]) -> None:
        """Reads these whenever somebody scrapes."""
        self.live_rows.set_function(num_rows)
        self.resident_bytes.set_function(resident_bytes)


class TokenizerMetrics:
    """Metrics of encode and decode."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = _Declare(registry)
        self.encode = make.histogram(names.METRIC_ENCODE, "One Encode call, seconds.", SECONDS_FAST)
        self.detokenize = make.histogram(
            names.METRIC_DETOKENIZE, "One Decode message, seconds.", SECONDS_FAST
        )
        self.encoded_tokens = make.counter(names.METRIC_ENCODED_TOKENS, "Token ids made from text.")
        self.detokenized_tokens = make.counter(
            names.METRIC_DETOKENIZED_TOKENS, "Token ids turned into text."
        )


class CacheMetrics:
    """Metrics of the response cache and the idempotency keys."""

    def __init__(self, registry: CollectorRegistry) -> None:
        make = _Declare(registry)
        self.operation = Histogram(
            names.METRIC_CACHE_OPERATION,
            "One call to Redis, by operation, seconds.",
            ("operation",),
            buckets=SECONDS_FAST,
            registry=registry,
        )
        for operation in ("look_up", "store", "remove", "size", "claim", "finish", "free"):
            self.operation.labels(operation)
        self.results = make.counters(
            names.METRIC_CACHE_RESULTS,
            "Calls by result; failed: Redis was away, slow or full.",
            "result",
            ("hit", "miss", "stored", "refused", "failed"),
        )
        self.connected = make.gauge(names.METRIC_CACHE_CONNECTED, "1 while Redis answers.")


class BusMetrics:
    """The connection to NATS, in every service that has one."""

    def __init__(self, registry: CollectorRegistry, is_connected: Callable[[], bool]) -> None:
        self.connected = _Declare(registry).gauge(
            names.METRIC_NATS_CONNECTED, "1 while the NATS server answers this process."
        )
        self.connected.set_function(lambda: float(is_connected()))
