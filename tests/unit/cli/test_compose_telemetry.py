"""What compose adds to watch the stack, and the schema that its file must fit."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from millrace.cli.stack.topology import load_topology

ROOT = Path(__file__).parents[3]


def loaded(path: str) -> Any:
    return importlib.import_module("yaml").safe_load((ROOT / path).read_text())


def test_prometheus_scrapes_every_service_where_it_serves_its_metrics() -> None:
    wanted = set()
    for spec in load_topology().processes:
        if spec.is_server or not spec.in_compose:
            continue
        port = spec.ports.get("metrics_port") or spec.ports["http_port"]
        wanted.add((spec.name, f"{spec.name}:{port}"))
    config = loaded("deploy/prometheus/prometheus.yml")
    scraped = set()
    for job in config["scrape_configs"]:
        # By name, so that every replica is found; the label is what dashboard and rules ask for.
        assert job["relabel_configs"] == [{"source_labels": ["job"], "target_label": "service"}]
        assert "static_configs" not in job
        for found in job["dns_sd_configs"]:
            assert found["type"] == "A"
            scraped |= {(job["job_name"], f"{name}:{found['port']}") for name in found["names"]}

    assert scraped == wanted
    folder = ROOT / "deploy" / "prometheus"
    assert [path.name for rules in config["rule_files"] for path in folder.glob(rules)]


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
    files = [str(ROOT / "docker-compose.yml"), str(ROOT / "docker-compose.gpu.yml")]
    command = ["--builtin-schema", "vendor.compose-spec", *files]

    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", *command], capture_output=True, text=True
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr
