"""Where the spans of a stack go, by the user's variables and `--no-telemetry`."""

from __future__ import annotations

from pathlib import Path

import pytest

from millrace.cli.stack.tracing import plan_tracing, stack_id
from millrace.config.home import Home
from millrace.core.errors import ConfigError

HOME = Home(Path("/home/a"))
COLLECTOR = "http://127.0.0.1:1"
THEIRS = {
    "OTEL_EXPORTER_OTLP_ENDPOINT": "https://u:hunter2@otel.example",
    "OTEL_EXPORTER_OTLP_HEADERS": "api-key=hunter2",
    "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
}


def test_by_itself_a_stack_keeps_its_spans() -> None:
    plan = plan_tracing({}, HOME, is_kept=True)

    assert plan.environ_of("worker", COLLECTOR)["OTEL_EXPORTER_OTLP_ENDPOINT"] == COLLECTOR
    assert plan.environ_of("collector", COLLECTOR) == {}
    assert plan.note == ""


def test_a_backend_of_the_user_gets_them_too_by_way_of_the_collector() -> None:
    plan = plan_tracing(THEIRS, HOME, is_kept=True)

    told = {**THEIRS, **plan.environ_of("worker", COLLECTOR)}
    assert told["OTEL_EXPORTER_OTLP_ENDPOINT"] == COLLECTOR
    assert "hunter2" not in str(told)
    collector = {**THEIRS, **plan.environ_of("collector", COLLECTOR)}
    assert collector.items() >= THEIRS.items()
    assert collector["MILLRACE_COLLECTOR_FORWARD_OTLP"] == "true"
    assert "otel.example" in plan.note and "hunter2" not in f"{plan.note}{plan}"


def test_without_the_collector_the_services_send_themselves() -> None:
    plan = plan_tracing(THEIRS, HOME, is_kept=False)

    assert not plan.has_collector
    told = {**THEIRS, **plan.environ_of("worker", "")}
    assert told.items() >= THEIRS.items()
    assert "OTEL_SDK_DISABLED" not in told


def test_without_collector_and_backend_nothing_is_made() -> None:
    plan = plan_tracing({}, HOME, is_kept=False)

    assert not plan.has_collector
    assert plan.environ_of("worker", "") == {"OTEL_SDK_DISABLED": "true"}


@pytest.mark.parametrize("off", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
@pytest.mark.parametrize("is_kept", [True, False])
def test_what_switches_traces_off_switches_them_off(off: dict[str, str], is_kept: bool) -> None:
    plan = plan_tracing(THEIRS | off, HOME, is_kept=is_kept)

    assert not plan.has_collector
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" not in plan.environ_of("worker", "")
    assert next(iter(off)) in plan.note


def test_what_cannot_be_followed_ends_the_start() -> None:
    with pytest.raises(ConfigError, match="grpc"):
        plan_tracing(THEIRS | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, HOME, is_kept=True)


def test_every_stack_has_a_name_in_its_spans_beside_what_the_user_adds() -> None:
    environ = {"OTEL_RESOURCE_ATTRIBUTES": "team=red,"}
    told = plan_tracing(environ, HOME, is_kept=True).environ_of("worker", COLLECTOR)

    assert told["OTEL_RESOURCE_ATTRIBUTES"] == f"team=red,millrace.stack.id={stack_id(HOME)}"
    assert stack_id(HOME) == stack_id(Home(Path("/home/a"))) != stack_id(Home(Path("/home/b")))
