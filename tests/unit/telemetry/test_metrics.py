"""Metrics: names on the page, exemplars, and the small server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry

from millrace.telemetry.metrics import (
    CacheMetrics,
    GatewayMetrics,
    SchedulerMetrics,
    TokenizerMetrics,
    WorkerMetrics,
    create_registry,
    observe,
    render,
    start_metrics_server,
)
from millrace.testing.span_recorder import SpanRecorder

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


def test_gateway_metrics_have_the_names_of_the_field() -> None:
    registry = CollectorRegistry()
    metrics = GatewayMetrics(registry)
    metrics.time_to_first_token.labels("smollm2").observe(0.1)
    metrics.request_success.labels("smollm2", "stop").inc()
    metrics.prompt_tokens.labels("smollm2").inc(7)

    page = render(registry, "")[0].decode()

    assert 'millrace_time_to_first_token_seconds_count{model_name="smollm2"} 1.0' in page
    assert 'millrace_request_success_total{finished_reason="stop",model_name="smollm2"} 1.0' in page
    assert 'millrace_prompt_tokens_total{model_name="smollm2"} 7.0' in page


def test_scheduler_metrics_have_the_names_of_the_field() -> None:
    registry = CollectorRegistry()
    metrics = SchedulerMetrics(registry)
    metrics.num_requests_running.set(3)
    metrics.preemptions.inc()

    page = render(registry, "")[0].decode()

    assert "millrace_num_requests_running 3.0" in page
    assert "millrace_preemptions_total 1.0" in page
    assert "millrace_kv_cache_usage_perc 0.0" in page


@pytest.mark.parametrize(
    "metrics", [GatewayMetrics, SchedulerMetrics, WorkerMetrics, CacheMetrics, TokenizerMetrics]
)
def test_each_service_registers_beside_the_process_metrics(
    metrics: Callable[[CollectorRegistry], object],
) -> None:
    registry = create_registry("worker")
    metrics(registry)

    page = render(registry, "")[0].decode()

    assert 'service="worker"' in page
    assert page.count("# TYPE millrace_") > 3


def test_two_processes_worth_of_metrics_can_live_in_one_process() -> None:
    GatewayMetrics(CollectorRegistry())
    GatewayMetrics(CollectorRegistry())


def test_histogram_carries_the_trace_id_of_a_sampled_span() -> None:
    registry = CollectorRegistry()
    histogram = WorkerMetrics(registry).step
    span = SpanRecorder().tracer("worker").start_span("decode")

    observe(histogram, 0.2, span)

    body, content_type = render(registry, OPEN_METRICS)
    trace_id = f"{span.get_span_context().trace_id:032x}"
    assert f'# {{trace_id="{trace_id}"}} 0.2' in body.decode()
    assert content_type.startswith("application/openmetrics-text")


def test_without_a_span_there_is_no_exemplar() -> None:
    registry = CollectorRegistry()

    observe(WorkerMetrics(registry).step, 0.2)

    assert b"trace_id" not in render(registry, OPEN_METRICS)[0]


async def test_metrics_server_answers_on_loopback() -> None:
    server = await start_metrics_server(create_registry("worker"), "127.0.0.1", 0)
    try:
        page = await _get(server.port, "GET /metrics HTTP/1.1")
        missing = await _get(server.port, "GET /other HTTP/1.1")
        refused = await _get(server.port, "POST /metrics HTTP/1.1")
    finally:
        await server.close()

    assert page.startswith(b"HTTP/1.1 200") and b"millrace_build_info" in page
    assert missing.startswith(b"HTTP/1.1 404")
    assert refused.startswith(b"HTTP/1.1 405")


async def _get(port: int, line: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{line}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer
