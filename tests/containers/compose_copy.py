"""A copy of docker-compose.yml for the tests: our services, as they are, on any engine.

What podman 4 does not know is left out, and the order that it stood for is kept by the tests.
In the place of the OpenTelemetry collector, Jaeger, Prometheus and Grafana stands the collector
of `millrace up`, under the name to which the services send their spans.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .engine import ROOT

OTHERS = ("jaeger", "prometheus", "grafana", "otel-collector")


def write_copy(folder: Path, project: str, image: str, mounts: Sequence[str]) -> Path:
    """Writes the copy into `folder`, where a file `.env` would be read too."""
    yaml = importlib.import_module("yaml")
    document: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    document["name"] = project
    services = {name: item for name, item in document["services"].items() if name not in OTHERS}
    for name, service in services.items():
        service.pop("depends_on", None)
        if "healthcheck" in service:
            service["healthcheck"].pop("start_interval")
        if service.pop("build", None):
            service["image"] = image
        service["volumes"] = [_absolute(volume) for volume in service.get("volumes", [])]
        if name == "model-init":
            service["volumes"] += mounts
        if name.endswith("-init"):
            # Run by the tests, which see to it that they end well.
            service["restart"] = "no"
    services["otel-collector"] = _collector(services["cache"])
    document["services"] = services
    document["volumes"] = {name: None for name in ("millrace-home", "nats-data", "valkey-data")}
    path = folder / "docker-compose.yml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def _collector(like: dict[str, Any]) -> dict[str, Any]:
    environment = {
        "MILLRACE_COLLECTOR_HOST": "0.0.0.0",
        "MILLRACE_COLLECTOR_INSECURE_BIND": "true",
    }
    command = ["python", "-m", "millrace.telemetry.collector"]
    test = ["CMD", "millrace", "probe", "tcp://127.0.0.1:4318"]
    return like | {
        "command": command,
        "environment": environment,
        "healthcheck": like["healthcheck"] | {"test": test},
    }


def _absolute(volume: str) -> str:
    return str(ROOT / volume[2:]) if volume.startswith("./") else volume
