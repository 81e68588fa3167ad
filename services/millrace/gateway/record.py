"""Metrics and span attributes of one request. No prompt, no text."""

from __future__ import annotations

from typing import Any

from opentelemetry import trace

from millrace.core.cancellation import CancelReason
from millrace.core.errors import MillraceError
from millrace.core.model import ModelInfo
from millrace.telemetry import names
from millrace.telemetry.metric_sets import UNKNOWN_MODEL
from millrace.telemetry.metrics import GatewayMetrics, observe

from .calls import Call
from .events import Finished
from .generation import GenerationRequest
from .live_request import LiveRequest

# Made once: making one costs as much as a span. It finds the process's provider by itself.
_tracer = trace.get_tracer(__name__)


class RequestRecord:
    """Told what happens to a request; ends once, with `finish` or `fail`."""

    def __init__(self, metrics: GatewayMetrics, call: Call) -> None:
        self._metrics = metrics
        self._call = call
        self._model = ""
        self._is_over = False
        self._is_cancelled = False

    def on_model(self, info: ModelInfo, request: GenerationRequest) -> None:
        """The model is known, and with it every value of the request."""
        self._model = self._call.facts.model = info.name
        self._metrics.requests_in_flight.labels(info.name).inc()
        span = self._call.span
        if not span.is_recording():
            return
        sampling: Any = request.sampling
        span.update_name(names.request_span_name(request.operation, info.name))
        span.set_attributes(
            {
                names.ATTR_OPERATION_NAME: request.operation,
                names.ATTR_REQUEST_MODEL: info.name,
                names.ATTR_RESPONSE_MODEL: info.name,
                names.ATTR_RESPONSE_ID: self._call.request_id,
                names.ATTR_REQUEST_TEMPERATURE: sampling.temperature,
                names.ATTR_REQUEST_TOP_P: sampling.top_p,
                names.ATTR_REQUEST_TOP_K: sampling.top_k,
                names.ATTR_REQUEST_FREQUENCY_PENALTY: sampling.frequency_penalty,
                names.ATTR_REQUEST_PRESENCE_PENALTY: sampling.presence_penalty,
                names.ATTR_REQUEST_CHOICE_COUNT: sampling.num_choices,
                names.ATTR_REQUEST_STREAM: request.is_streamed,
                names.ATTR_PRIORITY: request.priority.subject_token,
            }
        )

    def on_accepted(self, num_prompt_tokens: int, max_tokens: int, seed: int) -> None:
        """The request is on the queue."""
        self._call.accepted.set()
        self._metrics.prompt_tokens.labels(self._model).inc(num_prompt_tokens)
        self._call.facts.num_prompt_tokens += num_prompt_tokens
        if self._call.span.is_recording():
            self._call.span.set_attributes(
                {
                    names.ATTR_USAGE_INPUT_TOKENS: num_prompt_tokens,
                    names.ATTR_REQUEST_MAX_TOKENS: max_tokens,
                    # As text: attribute integers are signed, seeds have all 64 bits.
                    names.ATTR_REQUEST_SEED: str(seed),
                }
            )

    def on_cache(self, result: str) -> None:
        """What the response cache said: hit, miss or refresh."""
        self._metrics.response_cache.labels(self._model, result).inc()
        self._call.span.set_attribute(names.ATTR_RESPONSE_CACHE, result)

    def watch(self, live: LiveRequest) -> None:
        """Hears of tokens as they come."""
        latency = self._metrics.inter_token_latency.labels(self._model)
        time_to_first_token = self._metrics.time_to_first_token.labels(self._model)

        def on_first_token() -> None:
            elapsed_s = (live.first_token_ns - self._call.arrival_ns) / 1e9
            observe(time_to_first_token, elapsed_s, self._call.span)
            self._call.span.add_event(names.EVENT_FIRST_TOKEN)
            self._call.span.set_attribute(names.ATTR_TIME_TO_FIRST_TOKEN_S, elapsed_s)

        def on_gap(gap_s: float, num_tokens: int) -> None:
            latency.observe(gap_s)

        live.on_cancelled = self.cancelled
        live.on_first_token = on_first_token
        live.on_gap = on_gap

    def cancelled(self, reason: CancelReason) -> None:
        """The request was ended from this side; counted once."""
        if not self._is_cancelled and reason is not CancelReason.REFUSED:
            self._is_cancelled = True
            self._metrics.request_cancelled.labels(self._model or UNKNOWN_MODEL, reason).inc()

    def finish(self, finished: Finished, live: LiveRequest | None = None) -> None:
        """The client has the whole answer."""
        if self._is_over:
            return
        metrics, span = self._metrics, self._call.span
        usage, timings = finished.usage, finished.timings
        total_s = timings.total_ns / 1e9
        reasons = [choice.finish_reason.name.lower() for choice in finished.choices]
        metrics.request_success.labels(self._model, reasons[0]).inc()
        metrics.generation_tokens.labels(self._model).inc(usage.num_output_tokens)
        self._call.facts.num_output_tokens += usage.num_output_tokens
        if finished.is_cached:
            # It never was on the queue.
            self._call.facts.num_prompt_tokens += usage.num_prompt_tokens
        observe(metrics.e2e_request_latency.labels(self._model), total_s, span)
        if usage.num_output_tokens > 1 and not finished.is_cached:
            per_token_s = (timings.total_ns - timings.time_to_first_token_ns) / 1e9
            longest = max(choice.num_output_tokens for choice in finished.choices)
            observe(
                metrics.time_per_output_token.labels(self._model),
                per_token_s / max(1, longest - 1),
                span,
            )
        if span.is_recording():
            span.set_attributes(
                {
                    names.ATTR_RESPONSE_FINISH_REASONS: reasons,
                    names.ATTR_USAGE_OUTPUT_TOKENS: usage.num_output_tokens,
                    names.ATTR_USAGE_CACHED_TOKENS: usage.num_cached_tokens,
                    names.ATTR_TIME_IN_QUEUE_S: timings.queue_ns / 1e9,
                }
            )
        self._close(live)

    def fail(self, error: MillraceError, live: LiveRequest | None = None) -> None:
        """The request ended with an error."""
        if self._is_over:
            return
        self._metrics.request_failure.labels(self._model or UNKNOWN_MODEL, error.reason).inc()
        self._call.error = self._call.error or error
        if live is not None:
            num_emitted = sum(choice.num_emitted for choice in live.choices)
            self._call.facts.num_output_tokens += num_emitted
        self._close(live)

    def _close(self, live: LiveRequest | None) -> None:
        self._is_over = True
        if self._model:
            self._metrics.requests_in_flight.labels(self._model).dec()
        if live is None:
            return
        blocked_s = live.client_blocked_ns / 1e9
        self._metrics.client_blocked.labels(self._model).observe(blocked_s)
        self._call.span.set_attribute(names.ATTR_CLIENT_BLOCKED_S, blocked_s)
        if live.num_detokenize_calls and self._call.span.is_recording():
            self._add_detokenize_span(live)

    def _add_detokenize_span(self, live: LiveRequest) -> None:
        # One span over all of a request's Decode calls: one per frame would be one per token.
        span = _tracer.start_span(
            names.SPAN_DETOKENIZE,
            context=trace.set_span_in_context(self._call.span),
            start_time=live.detokenize_start_unix_ns,
            attributes={
                names.ATTR_DETOKENIZE_NUM_CALLS: live.num_detokenize_calls,
                names.ATTR_DETOKENIZE_BUSY_S: live.detokenize_busy_ns / 1e9,
            },
        )
        span.end(live.detokenize_end_unix_ns)
