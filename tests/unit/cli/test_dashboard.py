"""The dashboard and the alert rules ask for what is there, and explain themselves."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.samples import Sample
from scripts import metrics_page

from tests.promql import found, selectors

ROOT = Path(__file__).parents[3]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "dashboards" / "millrace.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = ROOT / "deploy" / "prometheus" / "rules" / "millrace.yml"
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
SERVICE_OF = {"Gateway": "gateway", "Scheduler": "scheduler", "Worker": "worker", "Cache": "cache"}


def declared() -> list[Sample]:
    """Everything that the services expose from their start, with the labels of their targets."""
    return [
        sample._replace(labels={"service": service, "instance": service, **sample.labels})
        for title, families in metrics_page.sections()
        for service in (SERVICE_OF.get(title, "tokenizer"),)
        for family in families
        for sample in family.samples
    ] + [Sample("up", {"service": "worker"}, 1.0)]


def queries() -> Iterator[tuple[str, str]]:
    for panel in PANELS:
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]
    for rule in alert_rules():
        yield rule["alert"], rule["expr"]
    for name in ("model", "instance"):
        yield f"${name}", VARIABLES[name]["definition"]


def alert_rules() -> list[Any]:
    groups = importlib.import_module("yaml").safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize(("where", "query"), list(queries()), ids=lambda value: value[:40])
def test_every_selector_finds_a_series_from_the_start(where: str, query: str) -> None:
    results = found(query, declared())

    assert results, f"{where} asks for nothing"
    missing = [selector for selector, samples in results.items() if not samples]
    assert not missing


def test_labels_that_queries_group_by_are_labels_of_what_they_ask_for() -> None:
    for where, query in queries():
        grouped = re.findall(r"by \(([^)]*)\)", query)
        wanted = {label.strip() for each in grouped for label in each.split(",")} - {"le"}
        for samples in found(query, declared()).values():
            assert wanted <= samples[0].labels.keys() | {"model_name"}, where


def test_legends_name_labels_that_are_there() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            for samples in found(target["expr"], declared()).values():
                assert named <= samples[0].labels.keys(), panel["title"]


def test_every_panel_has_a_description_a_unit_and_the_chosen_source() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert len(panel["description"]) > 20, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert {source["uid"] for source in sources} == {"${datasource}"}


def test_dashboard_can_be_imported_elsewhere_and_narrowed_down() -> None:
    assert VARIABLES["datasource"]["type"] == "datasource"
    assert {name: VARIABLES[name]["multi"] for name in ("model", "instance")} == {
        "model": True,
        "instance": True,
    }
    for where, query in queries():
        if where.startswith("$") or "millrace" not in query or "$" not in query:
            continue
        assert "$model" in query or "$instance" in query, where


@pytest.mark.parametrize("what", ["nats", "process_", "workers_lost", "spans_dropped", "changes("])
def test_dashboard_shows_more_than_requests(what: str) -> None:
    assert any(what in query for _, query in queries())


def test_every_alert_says_what_it_means() -> None:
    assert len(alert_rules()) > 10
    for rule in alert_rules():
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert len(rule["annotations"]["summary"]) > 20
        assert len(rule["annotations"]["description"]) > 20
        for used in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
            has_label = re.search(rf"by \([^)]*\b{used}\b", rule["expr"]) or " by " not in str(
                rule["expr"]
            )
            assert has_label, f"{rule['alert']} loses the label {used}"


def test_page_of_metrics_is_that_of_the_declarations() -> None:
    made = metrics_page.page()
    assert metrics_page.PAGE.read_text() == made, "run python -m scripts.metrics_page"


def test_selectors_are_read_as_prometheus_does() -> None:
    (one, two) = selectors('sum(rate(millrace_a_total{x=~"a|b",y!="c"}[5m])) / millrace_b > 0.5')

    assert one.finds("millrace_a_total", {"x": "b", "y": "d"})
    assert not one.finds("millrace_a_total", {"x": "bb", "y": "d"})
    assert not one.finds("millrace_a_total", {"x": "a", "y": "c"})
    assert two.finds("millrace_b", {})
    assert not two.finds("millrace_b_total", {})


def test_registry_of_every_service_is_on_the_page() -> None:
    assert isinstance(metrics_page.every_service(), CollectorRegistry)
    text = metrics_page.page()
    assert "`millrace_spans_dropped_total` (counter)" in text
    assert "`millrace_kv_cache_usage_perc` (gauge) | `model_name`, `worker_id` |" in text
    assert "from 0 to 1" in text
