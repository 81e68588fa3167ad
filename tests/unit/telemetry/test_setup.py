"""Start and stop of a process's telemetry, and an exporter that nobody answers."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from millrace.telemetry.exporter import (
    FAILURE_LIFETIME_S,
    REST_S,
    WARNING_INTERVAL_S,
    GuardedExporter,
    create_exporter,
)
from millrace.telemetry.otlp_settings import read_export_settings

SCRIPT = """
import time
from opentelemetry import trace
from millrace.telemetry.setup import start_telemetry
from millrace.telemetry.propagation import traceparent_of
telemetry = start_telemetry("worker")
tracer = trace.get_tracer("test")
started = time.perf_counter()
for _ in range(2000):
    with tracer.start_as_current_span("decode") as span:
        span.set_attribute("a", 1)
        assert traceparent_of()
spent = time.perf_counter() - started
stopping = time.perf_counter()
telemetry.shutdown()
telemetry.shutdown()
is_on = int(telemetry.exporter is not None)
print(f"{spent:.3f} {time.perf_counter() - stopping:.3f} {is_on} {span.is_recording()}")
"""


def _spans(count: int) -> list[ReadableSpan]:
    return [ReadableSpan("a") for _ in range(count)]


class FakeExporter(SpanExporter):
    def __init__(self, *results: SpanExportResult | Exception) -> None:
        self.results = list(results)
        self.num_calls = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.num_calls += 1
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


def _run(environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    base = {"PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=base | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


def _hanging_port() -> tuple[socket.socket, int]:
    """Accepts connections and never answers."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    return listener, listener.getsockname()[1]


def test_hanging_endpoint_neither_slows_spans_nor_holds_up_the_end() -> None:
    listener, port = _hanging_port()
    with listener:
        done = _run({"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"})

    spent_s, stop_s, is_on, _ = done.stdout.split()
    assert float(spent_s) < 2.0
    assert float(stop_s) < 3.0
    assert is_on == "1"


def test_dead_endpoint_costs_one_warning() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    done = _run({"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"})

    assert float(done.stdout.split()[0]) < 2.0
    assert len(done.stderr.splitlines()) <= 1
    assert "Traceback" not in done.stderr


def test_without_an_endpoint_nothing_is_exported_and_ids_exist() -> None:
    done = _run({})

    assert done.stdout.split()[2:] == ["0", "False"]
    assert done.stderr == ""


def test_failure_closes_the_door_for_a_while_and_counts_drops() -> None:
    now = [100.0]
    inner = FakeExporter(SpanExportResult.FAILURE, SpanExportResult.SUCCESS)
    exporter = GuardedExporter(inner, "http://x", clock=lambda: now[0])

    exporter.export(_spans(3))
    exporter.export(_spans(4))
    now[0] += REST_S
    exporter.export(_spans(5))

    assert inner.num_calls == 2
    assert (exporter.num_dropped, exporter.num_exported) == (7, 5)


def test_a_failure_is_told_until_spans_arrive_again_or_it_is_long_ago() -> None:
    now = [100.0]
    failure, success = SpanExportResult.FAILURE, SpanExportResult.SUCCESS
    inner = FakeExporter(failure, success, failure)
    exporter = GuardedExporter(inner, "http://x", clock=lambda: now[0])

    def is_failing_after_an_export() -> bool:
        exporter.export(_spans(1))
        return exporter.is_failing

    assert not exporter.is_failing
    assert is_failing_after_an_export()
    assert is_failing_after_an_export(), "it rests: nothing new is known"
    now[0] += REST_S
    assert not is_failing_after_an_export()
    assert is_failing_after_an_export()
    now[0] += FAILURE_LIFETIME_S
    assert not exporter.is_failing


def test_warns_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    inner = FakeExporter(*[ValueError("boom")] * 4)
    exporter = GuardedExporter(inner, "http://x", clock=lambda: now[0])

    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            exporter.export(_spans(1))
            now[0] += REST_S
        assert len(caplog.records) == 1
        now[0] += WARNING_INTERVAL_S
        exporter.export(_spans(1))

    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "otel:4317"),
        ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "-3"),
    ],
)
def test_a_variable_that_cannot_be_followed_ends_a_service_with_one_line(
    variable: str, value: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "millrace.cache"],
        env={"PATH": "/usr/bin:/bin", "MILLRACE_HOME": "/nowhere", variable: value},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 1
    assert ended.stderr.startswith(f"millrace cache: {variable}")
    assert ended.stderr.count("\n") == 1


def test_no_library_sees_the_password_of_the_endpoint(caplog: pytest.LogCaptureFixture) -> None:
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://bob:hunter2@127.0.0.1:1",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "0.2",
    }
    settings = read_export_settings(environ)
    assert settings is not None
    exporter = create_exporter(settings)
    with caplog.at_level(logging.DEBUG):
        exporter.export(_spans(1))
    exporter.shutdown()

    inner = exporter._inner
    assert inner._endpoint == "http://127.0.0.1:1/v1/traces"  # type: ignore[attr-defined]
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "traces are not being exported" in warning.message
    assert not [record for record in caplog.records if "hunter2" in str(vars(record))]
