"""What `millrace up` offers Prometheus: every process, and data for every panel."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.samples import Sample

from millrace.testing.stack import Stack
from tests.e2e.client import Client
from tests.promql import found, scraped

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards" / "millrace.json"
# Panels whose series a request alone does not raise.
QUIET = ("_lost_", "preempt", "starved", "nats", "cache", "dlq", "resumed", "failed", "failure")

pytestmark = pytest.mark.e2e


def _targets(stack: Stack) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(
        (stack.home / "run" / "prometheus-targets.json").read_text()
    )
    return listed


def _scrape(stack: Stack) -> Iterator[Sample]:
    for group in _targets(stack):
        page = httpx.get(f"http://{group['targets'][0]}/metrics", trust_env=False, timeout=10)
        assert page.status_code == 200
        yield from scraped(page.text, **group["labels"])


def test_every_service_is_a_target_and_status_says_so(stack: Stack) -> None:
    services = {group["labels"]["service"] for group in _targets(stack)}
    assert services == {"gateway", "tokenizer", "scheduler", "worker", "cache"}
    urls = {entry["name"]: entry["metrics_url"] for entry in stack.run_file()["processes"]}
    for group in _targets(stack):
        assert urls[group["labels"]["instance"]] == f"http://{group['targets'][0]}/metrics"


async def test_every_panel_has_data_after_one_request_over_each_edge(stack: Stack) -> None:
    client = Client(stack)
    await client.ask(text="Tell me about mills.", max_tokens=12, ignore_eos=True)
    await client.close()
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(f"{stack.http_url}/v1/models")).status_code == 200
    samples = list(_scrape(stack))
    panels = json.loads(DASHBOARD.read_text())["panels"]
    for panel in panels:
        for target in panel.get("targets", ()):
            for selector, hits in found(target["expr"], samples).items():
                assert hits, f"{panel['title']}: nothing for {selector}"
                if selector.name.startswith("millrace") and not any(
                    word in selector.name for word in (*QUIET, "spans", "num_", "live", "flight")
                ):
                    assert sum(hit.value for hit in hits) > 0, f"{panel['title']}: {selector}"
