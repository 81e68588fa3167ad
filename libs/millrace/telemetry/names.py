"""Every name that telemetry speaks, and the edges that a whole trace must show.

Spans: one request is one trace. The gateway's root is `{operation} {model}`; below it lie the calls
to tokenizer and cache, the publish, and, across NATS, the scheduler's and the worker's spans.
Batch steps are roots of their own that link to the `process` span of every member.

Attributes follow the OpenTelemetry conventions for generative AI, RPC and messaging; what they do
not name is `millrace.*`. Durations end in `_s` and are seconds. No prompt, no text, no key, unless
the gateway's setting `trace_content` asks for the first two.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

# Services, the `service.name` of the resource.
SERVICE_NAMESPACE = "millrace"
SERVICE_GATEWAY = "gateway"
SERVICE_TOKENIZER = "tokenizer"
SERVICE_SCHEDULER = "scheduler"
SERVICE_WORKER = "worker"
SERVICE_CACHE = "cache"
# Beside the service: which of several stacks of a machine or a backend.
ATTR_STACK_ID = "millrace.stack.id"
SERVICES = (SERVICE_GATEWAY, SERVICE_TOKENIZER, SERVICE_SCHEDULER, SERVICE_WORKER, SERVICE_CACHE)

# Spans. Templates hold `{operation}` and `{model}`; the rest are literal names.
OPERATION_CHAT = "chat"
OPERATION_TEXT_COMPLETION = "text_completion"
SPAN_REQUEST = "{operation} {model}"
RPC_PREFIX = "millrace.internal.v1."  # what drawings leave out
SPAN_ENCODE = "millrace.internal.v1.TokenizerService/Encode"
SPAN_CACHE_LOOK_UP = "millrace.internal.v1.CacheService/LookUp"
SPAN_CACHE_STORE = "millrace.internal.v1.CacheService/Store"
SPAN_SEND = "send mr.v1.req"
SPAN_PROCESS = "process mr.v1.req"
SPAN_HOLD = "hold"
SPAN_QUEUE_WAIT = "queue_wait"
SPAN_PREFILL = "prefill"
SPAN_DECODE = "decode"
SPAN_DETOKENIZE = "detokenize"
SPAN_STEP = "step"

# Events on `process` (scheduler) unless said otherwise.
EVENT_QUEUED = "queued"
EVENT_ADMITTED = "admitted"
EVENT_FIRST_TOKEN = "first_token"  # also on the root
# A choice lost its row, and gave its first token after that: with reason and worker.
EVENT_PREEMPTED = "preempted"
EVENT_RESUMED = "resumed"
EVENT_FINISHED = "finished"
# On the root: the stream to the scheduler broke, and the request was named on a new one.
EVENT_SCHEDULER_LOST = "scheduler_lost"
EVENT_SCHEDULER_BACK = "scheduler_back"

# Generative AI conventions (root span).
ATTR_OPERATION_NAME = "gen_ai.operation.name"
ATTR_PROVIDER_NAME = "gen_ai.provider.name"
ATTR_REQUEST_MODEL = "gen_ai.request.model"
ATTR_REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
ATTR_REQUEST_TEMPERATURE = "gen_ai.request.temperature"
ATTR_REQUEST_TOP_P = "gen_ai.request.top_p"
ATTR_REQUEST_TOP_K = "gen_ai.request.top_k"
ATTR_REQUEST_SEED = "gen_ai.request.seed"
ATTR_REQUEST_FREQUENCY_PENALTY = "gen_ai.request.frequency_penalty"
ATTR_REQUEST_PRESENCE_PENALTY = "gen_ai.request.presence_penalty"
ATTR_REQUEST_STREAM = "gen_ai.request.stream"
ATTR_REQUEST_CHOICE_COUNT = "gen_ai.request.choice.count"
ATTR_RESPONSE_ID = "gen_ai.response.id"
ATTR_RESPONSE_MODEL = "gen_ai.response.model"
ATTR_RESPONSE_FINISH_REASONS = "gen_ai.response.finish_reasons"
ATTR_USAGE_INPUT_TOKENS = "gen_ai.usage.input_tokens"
ATTR_USAGE_OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
ATTR_USAGE_CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
# What was said; only if the gateway's setting `trace_content` asks for it.
ATTR_INPUT_MESSAGES = "gen_ai.input.messages"
ATTR_OUTPUT_MESSAGES = "gen_ai.output.messages"
ATTR_TIME_TO_FIRST_TOKEN_S = "gen_ai.latency.time_to_first_token"
ATTR_TIME_IN_QUEUE_S = "gen_ai.latency.time_in_queue"

# RPC conventions (client and server spans).
ATTR_RPC_SYSTEM = "rpc.system.name"
ATTR_RPC_METHOD = "rpc.method"
ATTR_RPC_STATUS_CODE = "rpc.status_code"
RPC_SYSTEM_GRPC = "grpc"

# Messaging conventions (`send` and `process`).
ATTR_MESSAGING_SYSTEM = "messaging.system"
ATTR_MESSAGING_OPERATION_NAME = "messaging.operation.name"
ATTR_MESSAGING_OPERATION_TYPE = "messaging.operation.type"
ATTR_MESSAGING_DESTINATION_NAME = "messaging.destination.name"
ATTR_MESSAGING_DESTINATION_TEMPLATE = "messaging.destination.template"
ATTR_MESSAGING_MESSAGE_ID = "messaging.message.id"
ATTR_MESSAGING_BODY_SIZE = "messaging.message.body.size"
ATTR_MESSAGING_DELIVERY_COUNT = "messaging.nats.delivery_count"
MESSAGING_SYSTEM_NATS = "nats"
DESTINATION_TEMPLATE_REQUEST = "mr.v1.req.{model}.{priority}"

# Others in force.
ATTR_ERROR_TYPE = "error.type"
ATTR_HTTP_METHOD = "http.request.method"
ATTR_HTTP_ROUTE = "http.route"
ATTR_HTTP_STATUS_CODE = "http.response.status_code"

# Ours. On the root and on `process`: the way from a request id to its trace.
ATTR_REQUEST_ID = "millrace.request_id"
ATTR_TENANT = "millrace.tenant"
ATTR_PRIORITY = "millrace.priority"
ATTR_CHOICE = "millrace.choice"
ATTR_WORKER_ID = "millrace.worker_id"
ATTR_ATTEMPT = "millrace.attempt"
ATTR_ERROR_REASON = "millrace.error.reason"
# Root: how long the gateway had text that the client did not take.
ATTR_CLIENT_BLOCKED_S = "millrace.client.blocked_s"
# Root: the request whose run it shares, by an idempotency key.
ATTR_SHARED_WITH = "millrace.shared_with"
ATTR_RESPONSE_CACHE = "millrace.response_cache"  # hit | miss | refresh | bypass
# `hold`: what the gateway waits for, as the client would be told.
ATTR_HOLD_REASON = "millrace.hold.reason"
# Of `preempted` and `resumed`: a `Loss`.
ATTR_LOSS_REASON = "millrace.reason"
# Of `preempted` and `scheduler_lost`: how long nothing had been heard when the loss was noticed.
ATTR_SILENT_S = "millrace.silent_s"
# `process`: times it lost its row for want of blocks.
ATTR_NUM_PREEMPTIONS = "millrace.num_preemptions"
# `prefill` (worker): executed tokens, without the cached ones, and in how many chunks.
ATTR_PREFILL_NUM_TOKENS = "millrace.prefill.num_tokens"
ATTR_PREFILL_NUM_CHUNKS = "millrace.prefill.num_chunks"
ATTR_NUM_CACHED_TOKENS = "millrace.num_cached_tokens"
# `decode` (worker).
ATTR_DECODE_NUM_STEPS = "millrace.decode.num_steps"
ATTR_DECODE_NUM_STARVED = "millrace.decode.num_starved_steps"
# `detokenize` (gateway): calls, and the time spent in them.
ATTR_DETOKENIZE_NUM_CALLS = "millrace.detokenize.num_calls"
ATTR_DETOKENIZE_BUSY_S = "millrace.detokenize.busy_s"
# `step` (scheduler).
ATTR_STEP_ID = "millrace.step.id"
ATTR_BATCH_SIZE = "millrace.batch.size"
ATTR_BATCH_NUM_TOKENS = "millrace.batch.tokens"
ATTR_BATCH_KIND = "millrace.batch.kind"  # prefill | decode | mixed
ATTR_BATCH_KV_BLOCKS_USED = "millrace.batch.kv_blocks_used"
ATTR_STEP_S = "millrace.step.duration_s"
ATTR_FORWARD_S = "millrace.step.forward_s"
ATTR_SAMPLE_S = "millrace.step.sample_s"

# Metrics, without the suffixes that Prometheus adds to counters and histograms.
METRIC_TIME_TO_FIRST_TOKEN = "millrace_time_to_first_token_seconds"
METRIC_INTER_TOKEN_LATENCY = "millrace_inter_token_latency_seconds"
METRIC_TIME_PER_OUTPUT_TOKEN = "millrace_time_per_output_token_seconds"
METRIC_E2E_REQUEST_LATENCY = "millrace_e2e_request_latency_seconds"
METRIC_PROMPT_TOKENS = "millrace_prompt_tokens"
METRIC_GENERATION_TOKENS = "millrace_generation_tokens"
METRIC_HTTP_REQUESTS = "millrace_http_requests"
METRIC_GRPC_REQUESTS = "millrace_grpc_requests"
METRIC_REQUEST_SUCCESS = "millrace_request_success"
METRIC_REQUEST_FAILURE = "millrace_request_failure"
METRIC_REQUEST_CANCELLED = "millrace_request_cancelled"
METRIC_REQUESTS_IN_FLIGHT = "millrace_requests_in_flight"
METRIC_IGNORED_FIELDS = "millrace_request_ignored_fields"
METRIC_STALE_FRAMES_DROPPED = "millrace_stale_frames_dropped"
METRIC_CLIENT_BLOCKED = "millrace_client_blocked_seconds"
METRIC_RESPONSE_CACHE = "millrace_response_cache"
METRIC_NUM_REQUESTS_RUNNING = "millrace_num_requests_running"
METRIC_NUM_REQUESTS_WAITING = "millrace_num_requests_waiting"
METRIC_KV_CACHE_USAGE = "millrace_kv_cache_usage_perc"
METRIC_REQUEST_QUEUE_TIME = "millrace_request_queue_time_seconds"
METRIC_PREEMPTIONS = "millrace_preemptions"
METRIC_PREFIX_CACHE_QUERIES = "millrace_prefix_cache_queries"
METRIC_PREFIX_CACHE_HITS = "millrace_prefix_cache_hits"
METRIC_BATCH_SIZE = "millrace_batch_size"
METRIC_BATCH_TOKENS = "millrace_batch_tokens"
METRIC_SCHEDULE = "millrace_schedule_seconds"
METRIC_ROUND_TRIP = "millrace_step_round_trip_seconds"
METRIC_NATS_REDELIVERED = "millrace_nats_redelivered"
METRIC_NATS_ACK_PENDING = "millrace_nats_ack_pending"
METRIC_NATS_PENDING = "millrace_nats_pending"
METRIC_NATS_STREAM_MESSAGES = "millrace_nats_stream_messages"
METRIC_NATS_STREAM_BYTES = "millrace_nats_stream_bytes"
METRIC_NATS_STREAM_USAGE = "millrace_nats_stream_usage_ratio"
METRIC_NATS_CONNECTED = "millrace_nats_connected"
METRIC_ROWS_LOST = "millrace_rows_lost"
METRIC_WORKERS_LOST = "millrace_workers_lost"
METRIC_FAILED_STEPS = "millrace_failed_steps"
METRIC_REQUEST_ABORTED = "millrace_request_aborted"
METRIC_RESUMED_REQUESTS = "millrace_resumed_requests"
METRIC_DLQ = "millrace_dlq"
METRIC_NUM_WORKERS = "millrace_num_workers"
METRIC_STEP = "millrace_step_seconds"
METRIC_FORWARD = "millrace_forward_seconds"
METRIC_SAMPLE = "millrace_sample_seconds"
METRIC_ENGINE_TOKENS = "millrace_engine_tokens"
METRIC_LEASE_STEPS = "millrace_lease_steps"
METRIC_STARVED_ROWS = "millrace_starved_rows"
METRIC_LIVE_ROWS = "millrace_live_rows"
METRIC_RESIDENT_BYTES = "millrace_resident_bytes"
METRIC_ENCODE = "millrace_encode_seconds"
METRIC_DETOKENIZE = "millrace_detokenize_seconds"
METRIC_ENCODED_TOKENS = "millrace_encoded_tokens"
METRIC_DETOKENIZED_TOKENS = "millrace_detokenized_tokens"
METRIC_CACHE_OPERATION = "millrace_cache_operation_seconds"
METRIC_CACHE_RESULTS = "millrace_cache_results"
METRIC_CACHE_CONNECTED = "millrace_cache_connected"
METRIC_SPANS_EXPORTED = "millrace_spans_exported"
METRIC_SPANS_DROPPED = "millrace_spans_dropped"
METRIC_BUILD = "millrace_build"


class EdgeKind(StrEnum):
    """How the parent's context reaches the child."""

    LOCAL = "local"  # inside one process
    GRPC = "grpc"  # call metadata
    NATS = "nats"  # message header
    PLAN = "plan"  # Admission.traceparent
    LINK = "link"  # no parent: a span link from child to parent


@dataclass(frozen=True, slots=True)
class Edge:
    """One expected (parent, child) pair; the span names are templates."""

    parent_service: str
    parent_span: str
    child_service: str
    child_span: str
    kind: EdgeKind

    def __str__(self) -> str:
        return (
            f"{self.parent_service}:{self.parent_span} -> "
            f"{self.child_service}:{self.child_span} ({self.kind})"
        )


def _call(method: str, service: str) -> tuple[Edge, Edge]:
    """A gateway call: the client span below the root, the server span below the client's."""
    return (
        Edge(SERVICE_GATEWAY, SPAN_REQUEST, SERVICE_GATEWAY, method, EdgeKind.LOCAL),
        Edge(SERVICE_GATEWAY, method, service, method, EdgeKind.GRPC),
    )


# What every generated answer shows.
SERVICE_EDGES: tuple[Edge, ...] = (
    *_call(SPAN_ENCODE, SERVICE_TOKENIZER),
    Edge(SERVICE_GATEWAY, SPAN_REQUEST, SERVICE_GATEWAY, SPAN_SEND, EdgeKind.LOCAL),
    Edge(SERVICE_GATEWAY, SPAN_SEND, SERVICE_SCHEDULER, SPAN_PROCESS, EdgeKind.NATS),
    Edge(SERVICE_SCHEDULER, SPAN_PROCESS, SERVICE_SCHEDULER, SPAN_QUEUE_WAIT, EdgeKind.LOCAL),
    Edge(SERVICE_SCHEDULER, SPAN_PROCESS, SERVICE_WORKER, SPAN_PREFILL, EdgeKind.PLAN),
    Edge(SERVICE_SCHEDULER, SPAN_PROCESS, SERVICE_WORKER, SPAN_DECODE, EdgeKind.PLAN),
    Edge(SERVICE_GATEWAY, SPAN_REQUEST, SERVICE_GATEWAY, SPAN_DETOKENIZE, EdgeKind.LOCAL),
)
# In addition, where the request asked for the response cache and missed.
CACHE_EDGES: tuple[Edge, ...] = (
    *_call(SPAN_CACHE_LOOK_UP, SERVICE_CACHE),
    *_call(SPAN_CACHE_STORE, SERVICE_CACHE),
)
# In addition, where one of the request's steps was sampled.
STEP_EDGES: tuple[Edge, ...] = (
    Edge(SERVICE_SCHEDULER, SPAN_PROCESS, SERVICE_SCHEDULER, SPAN_STEP, EdgeKind.LINK),
)


def request_span_name(operation: str, model: str) -> str:
    """Name of a root span, `chat smollm2` say."""
    return SPAN_REQUEST.format(operation=operation, model=model)


def matches_span(template: str, name: str) -> bool:
    """True where `name` is an instance of the span name or template."""
    if "{" not in template:
        return template == name
    return _template_pattern(template).fullmatch(name) is not None


@lru_cache(maxsize=32)
def _template_pattern(template: str) -> re.Pattern[str]:
    operations = f"(?:{OPERATION_CHAT}|{OPERATION_TEXT_COMPLETION})"
    pattern = re.escape(template)
    pattern = pattern.replace(re.escape("{operation}"), operations)
    return re.compile(re.sub(r"\\\{\w+\\\}", ".+", pattern))
