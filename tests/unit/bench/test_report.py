"""The report of a benchmark: what it is of, its tables in a file, and on a narrow terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from scripts.bench import __main__ as bench
from scripts.bench.about import describe_run, one_line
from scripts.bench.report import ATTENTION, ENGINE, LINEAR, LOADS, MEMORY, OVERHEAD, report_sheet
from scripts.bench.tables import column_parts

from millrace.cli.console import Console
from millrace.engine.progress_text import only_last_steps
from tests.unit.cli.terminal import Terminal


def row(columns: dict[str, str], **values: Any) -> dict[str, Any]:
    """A number in every column that is not named."""
    return {key: values.get(key, 1234.56) for key in columns}


@pytest.fixture
def report() -> dict[str, Any]:
    """Every part that a report can have."""
    loads = [
        row(LOADS, protocol=wire, streams=streams) | {"model": "served-model"}
        for wire in ("grpc", "http")
        for streams in (1, 8)
    ]
    side = {"tokens_per_s": 9.0, "cpu_ms_per_token": {"gateway": 0.5}}
    return {
        "about": describe_run("engine-model"),
        "machine": {
            "cores": 2,
            "path": "avx2",
            "read_gb_per_s": 9.5,
            "multiply_tflops": {"torch float32, all cores": 0.1},
            "best": "torch float32",
        },
        "linears": [row(LINEAR, layer="gate|up")],
        "attention": [row(ATTENTION, what="decode")],
        "engine": [
            row(ENGINE, what="decode", weights="bfloat16", rows=r, context=64) for r in (1, 8)
        ],
        "loads": loads,
        "overhead_ms": {"grpc": row(OVERHEAD)},
        "hops_ms": {"queue": 0.4},
        "start_up_s": {"first": 9.0},
        "idle_cpu_percent": {"gateway": 0.1},
        "memory_mb": {"gateway": row(MEMORY)},
        "two_workers_mb": {"worker-1": row(MEMORY), "worker-2": row(MEMORY)},
        "telemetry": {
            "cost_percent": 1.0,
            "cost_percent_pairs": [1.0],
            "cpu_cost_percent": 1.0,
            "cpu_cost_percent_pairs": [1.0],
            "with": side,
            "without": side,
        },
    }


def test_tables_and_plots_lie_beside_the_json_and_say_what_they_are_of(
    report: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench._write(report, tmp_path)

    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"report.md", "bench.json", "throughput.svg", "latency.svg", "engine.svg"}
    text = (tmp_path / "report.md").read_text("utf-8")
    about = json.loads((tmp_path / "bench.json").read_text("utf-8"))["about"]
    assert set(about) == {
        *("model", "cpu", "cores", "memory", "system", "date", "version", "commit")
    }
    for name, value in about.items():
        assert value and f"| {name} | {value} |" in text
    for name in ("throughput", "latency", "engine"):
        assert f"![{name}]({name}.svg)" in text
        plot = (tmp_path / f"{name}.svg").read_text("utf-8")
        assert all(str(about[key]) in plot for key in ("version", "date", "commit", "model"))
    assert "TTFT p99" in (tmp_path / "latency.svg").read_text("utf-8")
    assert "report.md" in capsys.readouterr().out


def test_every_markdown_table_is_a_rectangle(report: dict[str, Any], tmp_path: Path) -> None:
    bench._write(report, tmp_path)

    text = (tmp_path / "report.md").read_text("utf-8")
    tables = re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE)
    assert len(tables) == 11
    for table in tables:
        lines = table.strip().splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1
        assert set(lines[1]) <= set("|-:")


def test_the_served_model_is_the_one_that_answered(report: dict[str, Any]) -> None:
    assert bench.name_served_model(report)["about"]["model"] == "served-model"
    del report["loads"]
    report["about"]["model"] = "engine-model"
    assert bench.name_served_model(report)["about"]["model"] == "engine-model"


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_no_line_wraps_on_a_terminal(report: dict[str, Any], columns: int) -> None:
    screen = Terminal()
    report_sheet(report).show(Console(screen, environ={"COLUMNS": str(columns), "NO_COLOR": "1"}))

    lines = screen.getvalue().splitlines()
    assert [line for line in lines if len(line) > columns] == []
    assert all(head in screen.getvalue() for head in (*LOADS.values(), *LINEAR.values()))


def test_a_wide_table_comes_in_parts_that_are_the_whole() -> None:
    cells = [["name", *(f"column {i}" for i in range(9))], ["a", *map(str, range(9))]]

    parts = column_parts(cells, 40)

    assert len(parts) > 2
    assert [part[1][0] for part in parts] == ["a"] * len(parts)
    assert [cell for part in parts for cell in part[1][1:]] == list(map(str, range(9)))
    assert column_parts(cells, None) == [cells]


def test_a_machine_that_tells_nothing_is_named_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("CPU_INFO", "MEMORY_INFO", "HERE"):
        monkeypatch.setattr(f"scripts.bench.about.{name}", tmp_path / "none")

    about = describe_run("m")

    assert about["cpu"] and about["memory"] == "unknown" and about["commit"] == "unknown commit"
    assert one_line(about).startswith("m on ")


def test_of_steps_only_the_last_is_kept_in_logs() -> None:
    kept: list[str] = []
    report = only_last_steps(kept.append)
    for text in (
        "packing the weights",
        *(f"packed layer {i + 1} of 30" for i in range(30)),
        "done",
    ):
        report(text)

    assert kept == ["packing the weights", "packed layer 30 of 30", "done"]
