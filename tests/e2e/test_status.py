"""`millrace status` of a real stack: its load, and what the gateway reaches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import httpx
import pytest

from millrace.testing.stack import Stack

TIMEOUT_S = 60

pytestmark = pytest.mark.e2e


def status(stack: Stack) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "millrace.cli", "status", "--json"],
        env={**os.environ, "MILLRACE_HOME": str(stack.home)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_every_part_that_the_gateway_needs_is_reached(stack: Stack) -> None:
    report = status(stack)

    seen = {item["name"]: item["is_seen_by_gateway"] for item in report["processes"]}
    assert {name for name, is_seen in seen.items() if is_seen} >= {
        *("nats", "cache", "tokenizer", "worker", "scheduler", "gateway")
    }
    assert False not in seen.values()


def test_a_request_that_runs_shows_in_the_load(stack: Stack) -> None:
    assert [worker["num_rows"] for worker in status(stack)["load"]["workers"]] == [0]
    body = {"prompt": "The river", "max_tokens": 4000, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{stack.http_url}/v1/completions", json=body) as response:
        lines = response.iter_lines()
        while not next(lines).startswith("data: "):
            pass
        load = status(stack)["load"]

    (worker,) = load["workers"]
    assert (load["num_running"], load["num_waiting"], worker["num_rows"]) == (1, 0, 1)
    assert worker["tokens_per_s"] > 0
    assert 0 < worker["kv_usage"] < 1
