"""Writes docs/metrics.md from the declarations in telemetry/metric_sets.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, Metric

from millrace.telemetry.exporter import GuardedExporter
from millrace.telemetry.metrics import (
    BusMetrics,
    CacheMetrics,
    GatewayMetrics,
    SchedulerMetrics,
    TokenizerMetrics,
    WorkerMetrics,
    create_registry,
)
from millrace.telemetry.setup import Telemetry

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"
HEAD = """\
# Metrics

Made by `python -m scripts.metrics_page` from `libs/millrace/telemetry/metric_sets.py`; a test
compares.

`millrace up` gives every service a port for its metrics: `millrace status --json` has them as
`metrics_url`, and `run/prometheus-targets.json` under MILLRACE_HOME lists them for Prometheus, with
the labels `service` and `instance` (`worker-1`, `worker-2`). The gateway has them at `/metrics`
beside its other routes. `MILLRACE_<SERVICE>_METRICS_PORT` chooses a port, 0 serves none; several
workers take one after the other from there.

```yaml
scrape_configs:
  - job_name: millrace
    file_sd_configs:
      - files: [/home/me/.local/share/millrace/run/prometheus-targets.json]
rule_files: [/path/to/millrace/deploy/prometheus/rules/millrace.yml]
```

The rules are [alerts](../deploy/prometheus/rules/millrace.yml). The
[dashboard](../deploy/grafana/dashboards/millrace.json) can be imported into any Grafana: it asks
for the data source, the model and the instances. Latencies carry the trace id of a request as
exemplar if OpenMetrics is asked for. Counters stand at 0 from the start for every label value that
can be known.
"""


def page() -> str:
    """The whole document."""
    parts = [HEAD.rstrip()]
    for title, families in sections():
        parts.append(f"\n## {title}\n\n| series | labels | |\n|---|---|---|")
        parts += [_row(family) for family in families]
    return "\n".join(parts) + "\n"


def sections() -> list[tuple[str, list[Metric]]]:
    """Every family that a service exposes, under the service's name."""
    return [
        ("Gateway", _families(_gateway)),
        ("Scheduler", _families(_scheduler)),
        ("Worker", _families(_worker)),
        ("Tokenizer", _families(TokenizerMetrics)),
        ("Cache", _families(CacheMetrics)),
        ("Gateway, scheduler and worker", _families(lambda r: BusMetrics(r, lambda: True))),
        ("Every service", list(every_service().collect())),
    ]


def every_service() -> CollectorRegistry:
    """What each process has of itself; `process_*` on Linux only."""
    exporter = GuardedExporter(InMemorySpanExporter(), "")
    return create_registry("service", Telemetry("service", None, exporter))


def _gateway(registry: CollectorRegistry) -> object:
    metrics = GatewayMetrics(registry)
    metrics.add_model("model")
    metrics.add_routes([("/", "GET")])
    metrics.add_methods(["method"])
    return metrics


def _scheduler(registry: CollectorRegistry) -> object:
    metrics = SchedulerMetrics(registry, "model")
    metrics.kv_cache_usage.set_all({"worker": 0.0})
    metrics.nats_pending.set_all({"normal": 0.0})
    return metrics


def _worker(registry: CollectorRegistry) -> object:
    return WorkerMetrics(registry, "model", "worker")


def _families(declare: Callable[[CollectorRegistry], object]) -> list[Metric]:
    registry = CollectorRegistry()
    declare(registry)
    return list(registry.collect())


def _row(family: Metric) -> str:
    name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
    labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
    shown = ", ".join(f"`{label}`{_values(family, label)}" for label in labels)
    return f"| `{name}` ({family.type}) | {shown} | {family.documentation} |"


def _values(family: Metric, label: str) -> str:
    """The values of a label that the code knows."""
    if label not in ("reason", "result", "kind", "finished_reason", "operation"):
        return ""
    values: Iterable[str] = dict.fromkeys(sample.labels[label] for sample in family.samples)
    return f" ({' '.join(values)})"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
