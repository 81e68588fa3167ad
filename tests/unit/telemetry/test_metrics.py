"""Metrics: names on the page, exemplars, and the small server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from prometheus_client import CollectorRegistry

from millrace.core.errors import ConfigError
from millrace.telemetry.metrics import (
    BusMetrics,
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
    metrics = SchedulerMetrics(registry, "m")
    metrics.num_requests_running.set(3)
    metrics.preemptions.inc()
    metrics.kv_cache_usage.set_all({"w": 0.25})

    page = render(registry, "")[0].decode()

    assert 'millrace_num_requests_running{model_name="m"} 3.0' in page
    assert 'millrace_preemptions_total{model_name="m"} 1.0' in page
    assert 'millrace_kv_cache_usage_perc{model_name="m",worker_id="w"} 0.25' in page


def _samples(registry: CollectorRegistry, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name
    }


def test_counters_stand_at_zero_before_the_first_failure() -> None:
    gateway, scheduler, worker = CollectorRegistry(), CollectorRegistry(), CollectorRegistry()
    GatewayMetrics(gateway).add_model("m")
    SchedulerMetrics(scheduler, "m")
    WorkerMetrics(worker, "m", "w")

    failures = _samples(gateway, "millrace_request_failure_total")
    assert failures[("m", "INTERNAL")] == failures[("unknown", "MODEL_NOT_FOUND")] == 0
    assert ("m", "client") in _samples(gateway, "millrace_request_cancelled_total")
    assert _samples(scheduler, "millrace_workers_lost_total") == {
        ("m", "worker_lost"): 0,
        ("m", "worker_frozen"): 0,
        ("m", "worker_left"): 0,
    }
    assert ("m", "client") in _samples(scheduler, "millrace_request_aborted_total")
    assert _samples(worker, "millrace_failed_steps_total") == {("m", "w"): 0}


def test_series_of_a_worker_that_has_gone_goes_too() -> None:
    registry = CollectorRegistry()
    usage = SchedulerMetrics(registry, "m").kv_cache_usage
    for number in range(50):
        usage.set_all({f"w{number}": 0.5, "steady": 0.1})

    assert set(_samples(registry, "millrace_kv_cache_usage_perc")) == {
        ("m", "w49"),
        ("m", "steady"),
    }


def test_there_is_no_second_series_with_the_time_of_creation() -> None:
    registry = create_registry("worker")
    WorkerMetrics(registry, "m", "w").step.observe(0.1)

    for accept in ("", OPEN_METRICS):
        assert b"_created" not in render(registry, accept)[0]


def test_figures_that_are_asked_for_when_somebody_scrapes() -> None:
    registry, rows = CollectorRegistry(), [3]
    WorkerMetrics(registry, "m", "w").watch(lambda: rows[0], lambda: 1024)
    is_connected = [True]
    BusMetrics(registry, lambda: is_connected[0])

    before = _samples(registry, "millrace_live_rows"), _samples(registry, "millrace_nats_connected")
    rows[0], is_connected[0] = 0, False

    assert before == ({("m", "w"): 3}, {(): 1})
    assert _samples(registry, "millrace_live_rows") == {("m", "w"): 0}
    assert _samples(registry, "millrace_nats_connected") == {(): 0}
    assert _samples(registry, "millrace_resident_bytes") == {("m", "w"): 1024}


async def test_port_in_use_is_an_error_of_one_line() -> None:
    server = await start_metrics_server(create_registry("worker"), "127.0.0.1", 0)
    try:
        with pytest.raises(ConfigError) as caught:
            await start_metrics_server(create_registry("worker"), "127.0.0.1", server.port)
    finally:
        await server.close()

    assert caught.value.field == "metrics_port"
    assert caught.value.message.startswith(
        f"metrics cannot be served on 127.0.0.1:{server.port} (Address already in use); stop what"
    )


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
