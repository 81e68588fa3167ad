"""One line and one count per request, at its end. Neither prompt nor text, nor what was refused."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

from opentelemetry.trace import Span

from millrace.telemetry.metrics import GatewayMetrics

from .call_facts import CallFacts
from .told_error import told_field

_log = logging.getLogger("millrace.access")

MAX_PATH_CHARS = 128


class AccessLog:
    """Counts every request; writes its line unless the setting says otherwise."""

    def __init__(self, metrics: GatewayMetrics, *, is_written: bool = True) -> None:
        self._metrics = metrics
        self._is_written = is_written

    def expect_routes(self, routes: Iterable[tuple[str, str]]) -> None:
        """The counts of (route, method) are there before the first request."""
        self._metrics.add_routes(routes)

    def expect_methods(self, methods: Iterable[str]) -> None:
        """The counts of gRPC methods are there before the first call."""
        self._metrics.add_methods(methods)

    def http_ended(self, facts: CallFacts, status: int) -> None:
        """A reply is out, or the client has gone before it was (499)."""
        self._metrics.http_requests.labels(facts.route, facts.method, str(status)).inc()
        self._write(facts, status)

    def rpc_ended(self, facts: CallFacts, code: str) -> None:
        """A call is over."""
        self._metrics.grpc_requests.labels(facts.route, code).inc()
        self._write(facts, code)

    def _write(self, facts: CallFacts, status: int | str) -> None:
        level = logging.DEBUG if facts.is_probe else logging.INFO
        if self._is_written and _log.isEnabledFor(level):
            _log.log(level, "request", extra=_fields(facts, status))


def _fields(facts: CallFacts, status: int | str) -> dict[str, Any]:
    fields: dict[str, Any] = {"edge": facts.edge}
    if facts.method:
        fields["method"] = facts.method
    fields["route"] = facts.route
    if facts.path:
        fields["path"] = facts.path[:MAX_PATH_CHARS]
    fields["status"] = status
    call = facts.call
    error = facts.error or (None if call is None else call.error)
    if error is not None:
        fields["reason"] = error.reason
        if field := told_field(error):
            fields["field"] = field
    if facts.model:
        fields["model"] = facts.model
        fields["prompt_tokens"] = facts.num_prompt_tokens
        fields["output_tokens"] = facts.num_output_tokens
    fields["ms"] = round((time.perf_counter_ns() - facts.started_ns) / 1e6, 1)
    fields["peer"] = facts.peer
    if call is not None:
        fields["request_id"] = call.request_id
        if trace_id := _trace_id(call.span):
            fields["trace_id"] = trace_id
    return fields


def _trace_id(span: Span) -> str:
    context = span.get_span_context()
    return f"{context.trace_id:032x}" if context.trace_flags.sampled else ""
