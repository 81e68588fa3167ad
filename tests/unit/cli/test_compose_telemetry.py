"""What compose adds to watch the stack, and the schema that its file must fit."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from millrace.cli.stack.topology import load_topology
from millrace.telemetry.metrics import (
    CacheMetrics,
    GatewayMetrics,
    SchedulerMetrics,
    TokenizerMetrics,
    WorkerMetrics,
)

ROOT = Path(__file__).parents[3]
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "millrace.json"
METRICS = (CacheMetrics, GatewayMetrics, SchedulerMetrics, TokenizerMetrics, WorkerMetrics)
SERIES = re.compile(r"millrace_\w+")


def loaded(path: str) -> Any:
    return importlib.import_module("yaml").safe_load((ROOT / path).read_text())


def known_series() -> set[str]:
    """Every series that a service can expose, suffixes and all."""
    suffixes = {
        "counter": ("_total",),
        "gauge": ("",),
        "histogram": ("_bucket", "_sum", "_count"),
    }
    names: set[str] = set()
    for metrics in METRICS:
        registry = CollectorRegistry()
        metrics(registry)
        for family in registry.collect():
            names |= {family.name + suffix for suffix in suffixes[family.type]}
    return names


def test_the_dashboard_asks_only_for_series_that_exist() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in SERIES.findall(query)}

    assert asked
    assert asked - known_series() == set()


def test_the_dashboard_uses_the_provisioned_source() -> None:
    source = loaded("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"][0]
    panels = json.loads(DASHBOARD.read_text())["panels"]

    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}


def test_prometheus_scrapes_every_service_where_it_serves_its_metrics() -> None:
    wanted = set()
    for spec in load_topology().processes:
        if spec.is_server or not spec.in_compose:
            continue
        port = spec.compose_settings.get("metrics_port") or spec.ports["http_port"]
        wanted.add((spec.name, f"{spec.name}:{port}"))
    scraped = {
        (job["job_name"], target)
        for job in loaded("deploy/prometheus/prometheus.yml")["scrape_configs"]
        for config in job["static_configs"]
        for target in config["targets"]
    }

    assert scraped == wanted


def test_every_container_ends_in_time_under_an_init_and_gains_no_rights() -> None:
    for name, service in loaded("docker-compose.yml")["services"].items():
        assert service["init"] is True, name
        assert service["stop_grace_period"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_every_named_volume_is_declared_and_every_folder_exists() -> None:
    compose = loaded("docker-compose.yml")
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).is_dir(), source
            else:
                assert source in compose["volumes"], source


def test_compose_fits_its_schema() -> None:
    if importlib.util.find_spec("check_jsonschema") is None:
        pytest.skip("check-jsonschema is not installed")
    command = ["--builtin-schema", "vendor.compose-spec", str(ROOT / "docker-compose.yml")]

    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", *command], capture_output=True, text=True
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr
